//! Who may do what: the only place that compares an ACL with identities.
//!
//! An access control list is a list of grants; there are no denials. The schemes are ZooKeeper's, and
//! one more:
//!
//! | scheme | id | whom it names |
//! |---|---|---|
//! | `world` | `anyone` | everybody |
//! | `digest` | `user:hash` | who gave the password of that hash |
//! | `password` | a user's name | who gave that user's password: Conclave's own scheme |
//! | `ip` | address or `address/bits` | who connects from there; IPv4 and IPv6 |
//! | `x509` | a distinguished name | who showed a certificate with that subject |
//! | `sasl` | a principal | who was authenticated by that mechanism |
//! | `auth` | anything | the writer: replaced by the writer's own identities when it is written |
//!
//! Whoever has an identity of the scheme `super` may do everything.

use core::net::IpAddr; // A pure type; `std::net`, which re-exports it, is sockets.
use std::collections::BTreeSet;
use std::sync::Arc;

use conclave_proto::{Acl, ErrorCode, Identity, Perms, SessionId, Txn};

use crate::limits;

/// Whether `acl` grants one of the identities at least one of the permissions `any_of`.
pub fn allows(acl: &[Acl], any_of: Perms, identities: &[Identity]) -> bool {
    let granted = acl
        .iter()
        .filter(|line| line.perms.0 & any_of.0 != 0)
        .any(|line| is_anyone(&line.identity) || identities.iter().any(|i| names(line, i)));
    granted || identities.iter().any(|identity| identity.scheme == "super")
}

/// On whose behalf something is done.
#[derive(Clone, Copy)]
pub(super) enum Asker<'a> {
    /// The ensemble's own, by its leader: it may do everything.
    System,
    /// A client's.
    Client(&'a [Identity]),
}

impl<'a> Asker<'a> {
    /// Who asks for the transaction.
    pub(super) fn of(txn: &'a Txn) -> Asker<'a> {
        match txn.request.session {
            SessionId::NONE => Asker::System,
            _ => Asker::Client(&txn.identities),
        }
    }

    /// Fail unless one of the permissions `any_of` is granted.
    pub(super) fn check(self, acl: &[Acl], any_of: Perms) -> Result<(), ErrorCode> {
        match self {
            Asker::System => Ok(()),
            Asker::Client(identities) if allows(acl, any_of, identities) => Ok(()),
            Asker::Client(_) => Err(ErrorCode::NoAuth),
        }
    }

    /// The ACL to be written when this one is asked for: valid, and `auth` replaced.
    pub(super) fn resolve(self, acl: &[Acl]) -> Result<Arc<[Acl]>, ErrorCode> {
        if Acl::is_open(acl) {
            return Ok(Acl::open());
        }
        let mut lines = Vec::with_capacity(acl.len());
        for line in acl.iter().take(limits::ACL_LINES + 1) {
            if line.identity.scheme == "auth" {
                let before = lines.len();
                lines.extend(self.authenticated().map(|i| Acl { identity: i.clone(), ..*line }));
                if lines.len() == before {
                    return Err(ErrorCode::InvalidAcl);
                }
            } else if is_valid(&line.identity) {
                lines.push(line.clone());
            } else {
                return Err(ErrorCode::InvalidAcl);
            }
        }
        let perms_exist = lines.iter().all(|line| Perms::ALL.contains(line.perms));
        if lines.is_empty() || lines.len() > limits::ACL_LINES || !perms_exist {
            return Err(ErrorCode::InvalidAcl);
        }
        // Clients of ZooKeeper repeat themselves, and read it only once.
        let mut seen = BTreeSet::new();
        lines.retain(|line| seen.insert(line.clone()));
        Ok(Acl::share(&lines))
    }

    /// The identities that say who somebody is, not merely where they come from.
    fn authenticated(self) -> impl Iterator<Item = &'a Identity> {
        let identities = match self {
            Asker::System => &[],
            Asker::Client(identities) => identities,
        };
        identities
            .iter()
            .filter(|i| !matches!(i.scheme.as_str(), "world" | "ip" | "auth" | "super"))
    }
}

/// The ACL as it is shown to those who may not change it: without the hashes of passwords.
pub fn masked(acl: &[Acl]) -> Vec<Acl> {
    let mut acl = acl.to_vec();
    for line in acl.iter_mut().filter(|line| line.identity.scheme == "digest") {
        let user = line.identity.id.split(':').next().unwrap_or_default();
        line.identity.id = format!("{user}:x");
    }
    acl
}

fn is_anyone(identity: &Identity) -> bool {
    identity.scheme == "world" && identity.id == "anyone"
}

fn names(line: &Acl, identity: &Identity) -> bool {
    let Identity { scheme, id } = &line.identity;
    *scheme == identity.scheme
        && match scheme.as_str() {
            "ip" => Network::parse(id).is_some_and(|network| network.contains(&identity.id)),
            _ => *id == identity.id,
        }
}

fn is_valid(identity: &Identity) -> bool {
    let Identity { scheme, id } = identity;
    id.len() <= limits::IDENTITY_BYTES
        && match scheme.as_str() {
            "world" => id == "anyone",
            // As Java splits: a user may have no name, and colons at the end are none.
            "digest" => id.trim_end_matches(':').split(':').count() == 2,
            "ip" => Network::parse(id).is_some(),
            "x509" | "sasl" | "password" => !id.is_empty(),
            _ => false,
        }
}

/// The addresses that share their first bits.
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let Some((address, bits)) = text.split_once('/') else {
            let address = text.parse::<IpAddr>().ok()?.to_canonical();
            return Some(Network { address, bits: width(address) });
        };
        let address = address.parse().ok()?;
        let bits = bits.parse().ok()?;
        (bits <= width(address)).then_some(Network { address, bits })
    }

    fn contains(&self, address: &str) -> bool {
        // An IPv4 client of a socket that listens on IPv6 shows a mapped address.
        match (self.address, address.parse::<IpAddr>().map(|address| address.to_canonical())) {
            (IpAddr::V4(network), Ok(IpAddr::V4(address))) => {
                let differing = u32::from(network) ^ u32::from(address);
                differing.leading_zeros() >= self.bits
            }
            (IpAddr::V6(network), Ok(IpAddr::V6(address))) => {
                let differing = u128::from(network) ^ u128::from(address);
                differing.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}
