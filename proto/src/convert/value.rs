//! The values that messages are made of.

use std::borrow::Cow;

use bytes::Bytes;

use crate::error::{ErrorCode, Fault};
use crate::generated as wire;
use crate::ids::{Secret, ServerId, SessionId, Zxid};
use crate::limits;
use crate::node::{Acl, Identity, Perms, Stat};
use crate::path::{PathError, ZPath};

/// A value that is not allowed: what is answered if it came in a request.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) code: ErrorCode,
    pub(super) detail: Cow<'static, str>,
}

impl Invalid {
    pub(super) fn new(code: ErrorCode, detail: impl Into<Cow<'static, str>>) -> Invalid {
        Invalid { code, detail: detail.into() }
    }

    pub(super) fn argument(detail: impl Into<Cow<'static, str>>) -> Invalid {
        Invalid::new(ErrorCode::BadArguments, detail)
    }
}

/// Fails if `what` has more than `max` of its `parts`.
pub(super) fn at_most(what: &str, length: usize, max: usize, parts: &str) -> Result<(), Invalid> {
    if length <= max {
        return Ok(());
    }
    let detail = format!("{what} of {length} {parts}, where at most {max} are allowed");
    Err(Invalid::new(ErrorCode::TooLarge, detail))
}

/// What a message must have.
pub(super) fn needed<T>(what: &'static str, part: Option<T>) -> Result<T, Invalid> {
    part.ok_or_else(|| Invalid::argument(format!("{what} is missing or of an unknown kind")))
}

pub(super) fn text_to_wire(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A text of at most `max` bytes.
pub(super) fn text<'a>(what: &str, bytes: &'a [u8], max: usize) -> Result<&'a str, Invalid> {
    at_most(what, bytes.len(), max, "bytes")?;
    std::str::from_utf8(bytes).map_err(|error| Invalid::argument(format!("{what}: {error}")))
}

/// The path as it is, not a copy.
pub(super) fn path_to_wire(path: &ZPath) -> Bytes {
    Bytes::from_owner(path.clone())
}

pub(super) fn path(bytes: &[u8]) -> Result<ZPath, Invalid> {
    checked_path(bytes, ZPath::new)
}

/// The path of a node that is to be created.
pub(super) fn new_path(bytes: &[u8], sequential: bool) -> Result<ZPath, Invalid> {
    checked_path(bytes, if sequential { ZPath::prefix } else { ZPath::new })
}

fn checked_path(
    bytes: &[u8],
    check: impl FnOnce(&str) -> Result<ZPath, PathError>,
) -> Result<ZPath, Invalid> {
    let text = text("a path", bytes, limits::PATH_BYTES)?;
    check(text).map_err(|error| {
        let code = match error {
            PathError::TooLong(_) | PathError::TooDeep(_) => ErrorCode::TooLarge,
            PathError::NotAbsolute
            | PathError::TrailingSlash
            | PathError::EmptyPart(_)
            | PathError::RelativePart
            | PathError::Character { .. } => ErrorCode::BadArguments,
        };
        Invalid::new(code, error.to_string())
    })
}

/// A node's data.
pub(super) fn data(data: Option<Bytes>) -> Result<Option<Bytes>, Invalid> {
    at_most("a value", data.as_ref().map_or(0, Bytes::len), limits::VALUE_BYTES, "bytes")?;
    Ok(data)
}

pub(super) fn secret_to_wire(secret: &Secret) -> Bytes {
    Bytes::copy_from_slice(secret.expose())
}

pub(super) fn secret(bytes: &[u8]) -> Result<Secret, Invalid> {
    let bytes = bytes.try_into().map_err(|_| Invalid::argument("a secret has 16 bytes"))?;
    Ok(Secret::new(bytes))
}

pub(super) fn server(number: u32) -> Result<ServerId, Invalid> {
    u8::try_from(number)
        .ok()
        .and_then(ServerId::new)
        .ok_or_else(|| Invalid::argument(format!("{number} is not the number of a server")))
}

pub(super) fn identity_to_wire(identity: &Identity) -> wire::Identity {
    let Identity { scheme, id } = identity;
    match (scheme.as_str(), id.as_str()) {
        // Nearly every ACL has it.
        ("world", "anyone") => wire::Identity {
            scheme: Bytes::from_static(b"world"),
            id: Bytes::from_static(b"anyone"),
        },
        (scheme, id) => wire::Identity { scheme: text_to_wire(scheme), id: text_to_wire(id) },
    }
}

pub(super) fn identity(identity: wire::Identity) -> Result<Identity, Invalid> {
    Ok(Identity {
        scheme: text("a scheme", &identity.scheme, limits::IDENTITY_BYTES)?.into(),
        id: text("an identity", &identity.id, limits::IDENTITY_BYTES)?.into(),
    })
}

pub(super) fn identities_to_wire(identities: &[Identity]) -> Vec<wire::Identity> {
    identities.iter().map(identity_to_wire).collect()
}

pub(super) fn identities(identities: Vec<wire::Identity>) -> Result<Vec<Identity>, Invalid> {
    at_most("a list", identities.len(), limits::IDENTITIES, "identities")?;
    let mut list = Vec::with_capacity(identities.len());
    for identity in identities {
        list.push(self::identity(identity)?);
    }
    Ok(list)
}

pub(super) fn acl_to_wire(acl: &[Acl]) -> Vec<wire::Acl> {
    acl.iter()
        .map(|line| wire::Acl {
            perms: line.perms.0.into(),
            identity: Some(identity_to_wire(&line.identity)),
        })
        .collect()
}

pub(super) fn acl(acl: Vec<wire::Acl>) -> Result<Vec<Acl>, Invalid> {
    at_most("an ACL", acl.len(), limits::ACL_LINES, "lines")?;
    acl.into_iter().map(acl_line).collect()
}

fn acl_line(line: wire::Acl) -> Result<Acl, Invalid> {
    let perms = u8::try_from(line.perms).map_err(|_| {
        Invalid::new(ErrorCode::InvalidAcl, format!("unknown permissions {}", line.perms))
    })?;
    let identity = line
        .identity
        .ok_or_else(|| Invalid::new(ErrorCode::InvalidAcl, "a line of the ACL names nobody"))?;
    Ok(Acl { perms: Perms(perms), identity: self::identity(identity)? })
}

pub(super) fn stat_to_wire(stat: &Stat) -> wire::Stat {
    wire::Stat {
        czxid: stat.czxid.bits(),
        mzxid: stat.mzxid.bits(),
        pzxid: stat.pzxid.bits(),
        ctime_ms: stat.ctime_ms,
        mtime_ms: stat.mtime_ms,
        version: stat.version,
        cversion: stat.cversion,
        aversion: stat.aversion,
        ephemeral_owner: stat.ephemeral_owner.0,
        data_length: stat.data_length,
        num_children: stat.num_children,
    }
}

pub(super) fn stat(stat: wire::Stat) -> Stat {
    Stat {
        czxid: Zxid::from_bits(stat.czxid),
        mzxid: Zxid::from_bits(stat.mzxid),
        pzxid: Zxid::from_bits(stat.pzxid),
        ctime_ms: stat.ctime_ms,
        mtime_ms: stat.mtime_ms,
        version: stat.version,
        cversion: stat.cversion,
        aversion: stat.aversion,
        ephemeral_owner: SessionId(stat.ephemeral_owner),
        data_length: stat.data_length,
        num_children: stat.num_children,
    }
}

pub(super) fn fault_to_wire(fault: Fault, message: &str) -> wire::Error {
    wire::Error {
        code: code_to_wire(fault.code).into(),
        index: fault.index,
        message: text_to_wire(message),
    }
}

pub(super) fn fault(error: &wire::Error) -> Result<Fault, Invalid> {
    Ok(Fault { code: code(error.code)?, index: error.index })
}

/// Pairs every error with its number, once for both directions.
macro_rules! codes {
    ($($code:ident),* $(,)?) => {
        impl ErrorCode {
            /// Every error, in the order of their numbers.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$code),*];
        }

        pub(super) fn code_to_wire(code: ErrorCode) -> wire::ErrorCode {
            match code {
                $(ErrorCode::$code => wire::ErrorCode::$code,)*
            }
        }

        pub(super) fn code(number: i32) -> Result<ErrorCode, Invalid> {
            match wire::ErrorCode::try_from(number) {
                $(Ok(wire::ErrorCode::$code) => Ok(ErrorCode::$code),)*
                Ok(wire::ErrorCode::Unspecified) | Err(_) => {
                    Err(Invalid::argument(format!("{number} is not an error this program knows")))
                }
            }
        }
    };
}

codes!(
    NoNode,
    NodeExists,
    BadVersion,
    NotEmpty,
    NoChildrenForEphemerals,
    ConditionFailed,
    RolledBack,
    NotTried,
    BadArguments,
    TooLarge,
    InvalidAcl,
    NoAuth,
    AuthFailed,
    SessionExpired,
    SessionMoved,
    NoWatcher,
    Unimplemented,
    QuotaExceeded,
    NoSpace,
    Throttled,
    Unavailable,
    SequenceOverflow,
    OutcomeUnknown,
    NotReadOnly,
    EphemeralOnLocalSession,
);
