//! Who a client is: what it can show beside its address.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use conclave_proto::{ErrorCode, Fault, Identity, Reply, Xid};
use sha1::{Digest, Sha1};

use crate::limits;
use crate::tree::Nodes;

use super::audit::public;
use super::client::{Answer, SlotState};
use super::machine::Replica;
use super::pending::identities_bytes;
use super::{Authentication, ConnId, Notice, ToClient};

impl<N: Nodes> Replica<N> {
    /// Add an identity to a connection. It holds for the requests that come after this one.
    ///
    /// # Errors
    /// `AuthFailed` if the scheme is not known or the credentials are refused.
    pub(super) fn authenticate(
        &mut self,
        conn: ConnId,
        scheme: &str,
        credentials: &[u8],
    ) -> Result<Reply, Fault> {
        let Some(client) = self.clients.get(&conn) else {
            return Err(ErrorCode::SessionExpired.into());
        };
        let shown = client.identities.iter().any(|identity| identity.scheme == scheme);
        let claimed = match scheme {
            "digest" => digest_identity(credentials).unwrap_or_default(),
            _ => String::new(),
        };
        let claimed = Identity { scheme: scheme.to_owned(), id: claimed };
        let result = match scheme {
            "digest" if claimed.id.is_empty() => Err(ErrorCode::AuthFailed.into()),
            "digest" => {
                let digest = self.config.super_digest.as_deref();
                let is_super = digest.is_some_and(|digest| is_same(digest, &claimed.id));
                let all = is_super.then(|| Identity { scheme: "super".into(), id: String::new() });
                Ok(all.into_iter().chain([claimed.clone()]).collect())
            }
            // The address is known without being told; so is the certificate, if one was shown.
            "ip" | "x509" if shown => return Ok(Reply::Done),
            _ => Err(ErrorCode::AuthFailed.into()),
        };
        self.give(conn, &claimed, result)
    }

    /// What came of a check that was made outside is answered in its turn.
    pub(super) fn checked(
        &mut self,
        conn: ConnId,
        xid: Xid,
        claimed: &Identity,
        result: Result<Vec<Identity>, Fault>,
    ) {
        if self.heard_from(conn, 1).is_none() {
            return;
        }
        let result = self.give(conn, claimed, result);
        if let Some(client) = self.clients.get_mut(&conn) {
            client.queue.push(xid, SlotState::Answered(Answer { zxid: None, result }));
        }
        self.drain(conn);
    }

    /// Add what a client has shown to its identities, and tell of it either way.
    fn give(
        &mut self,
        conn: ConnId,
        claimed: &Identity,
        result: Result<Vec<Identity>, Fault>,
    ) -> Result<Reply, Fault> {
        let Some(client) = self.clients.get_mut(&conn) else {
            return Err(ErrorCode::SessionExpired.into());
        };
        let result = result.and_then(|shown| {
            let mut identities = client.identities.to_vec();
            shown.into_iter().for_each(|identity| add(&mut identities, identity));
            if identities.len() > limits::IDENTITIES {
                return Err(ErrorCode::AuthFailed.into());
            }
            let weight = ToClient::Identities(identities_bytes(&identities));
            self.out.clients.push((conn, weight));
            client.identities = identities.into();
            Ok(Reply::Done)
        });
        let address = client.identities.iter().find(|identity| identity.scheme == "ip");
        let Identity { scheme, id } = public(claimed);
        self.out.notices.push(Notice::Authentication(Authentication {
            address: address.map(|identity| identity.id.clone()).unwrap_or_default(),
            session: client.session(),
            scheme,
            id,
            accepted: result.is_ok(),
        }));
        result
    }
}

fn add(identities: &mut Vec<Identity>, identity: Identity) {
    if !identities.contains(&identity) {
        identities.push(identity);
    }
}

/// `user:hash` for `user:password`, as ZooKeeper's scheme `digest` has it: the hash covers both, as
/// the text that Java makes of them.
fn digest_identity(credentials: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(credentials);
    let user = text.split(':').next().unwrap_or_default();
    let id = format!("{user}:{}", STANDARD.encode(Sha1::digest(text.as_bytes())));
    (id.len() <= limits::IDENTITY_BYTES).then_some(id)
}

/// Takes the same time wherever the difference lies.
fn is_same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |found, (a, b)| found | (a ^ b));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_zookeepers() {
        let id = digest_identity(b"super:test").unwrap();
        assert_eq!(id, "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");
        // The password may have colons of its own.
        assert!(digest_identity(b"a:b:c").unwrap().starts_with("a:"));
        assert_ne!(digest_identity(b"a:b:c"), digest_identity(b"a:b"));
        assert_eq!(digest_identity(b"\xff:p"), digest_identity("\u{fffd}:p".as_bytes()));
    }

    #[test]
    fn an_identity_that_no_server_could_read_again_is_refused() {
        assert_eq!(digest_identity(&[b'u'; limits::IDENTITY_BYTES]), None);
    }

    #[test]
    fn only_the_same_is_the_same() {
        assert!(is_same("a:1", "a:1"));
        assert!(!is_same("a:1", "a:2") && !is_same("a:1", "a:11") && !is_same("a:1", ""));
    }
}
