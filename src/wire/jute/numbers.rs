//! The protocol's numbers.

use conclave_proto::{ErrorCode, EventKind};

/// What a request asks.
pub(super) mod opcode {
    pub(in crate::wire) const CREATE: i32 = 1;
    pub(in crate::wire) const DELETE: i32 = 2;
    pub(in crate::wire) const EXISTS: i32 = 3;
    pub(in crate::wire) const GET_DATA: i32 = 4;
    pub(in crate::wire) const SET_DATA: i32 = 5;
    pub(in crate::wire) const GET_ACL: i32 = 6;
    pub(in crate::wire) const SET_ACL: i32 = 7;
    pub(in crate::wire) const GET_CHILDREN: i32 = 8;
    pub(in crate::wire) const SYNC: i32 = 9;
    pub(in crate::wire) const PING: i32 = 11;
    pub(in crate::wire) const GET_CHILDREN2: i32 = 12;
    pub(in crate::wire) const CHECK: i32 = 13;
    pub(in crate::wire) const MULTI: i32 = 14;
    pub(in crate::wire) const CREATE2: i32 = 15;
    pub(in crate::wire) const RECONFIG: i32 = 16;
    pub(in crate::wire) const CHECK_WATCHES: i32 = 17;
    pub(in crate::wire) const REMOVE_WATCHES: i32 = 18;
    pub(in crate::wire) const CREATE_CONTAINER: i32 = 19;
    pub(in crate::wire) const CREATE_TTL: i32 = 21;
    pub(in crate::wire) const MULTI_READ: i32 = 22;
    pub(in crate::wire) const AUTH: i32 = 100;
    pub(in crate::wire) const SET_WATCHES: i32 = 101;
    pub(in crate::wire) const SASL: i32 = 102;
    pub(in crate::wire) const GET_EPHEMERALS: i32 = 103;
    pub(in crate::wire) const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub(in crate::wire) const SET_WATCHES2: i32 = 105;
    pub(in crate::wire) const ADD_WATCH: i32 = 106;
    pub(in crate::wire) const WHO_AM_I: i32 = 107;
    pub(in crate::wire) const FILTERED_LIST: i32 = 500;
    pub(in crate::wire) const CHECK_NOT_EXISTS: i32 = 501;
    pub(in crate::wire) const CREATE_IF_NOT_EXISTS: i32 = 502;
    pub(in crate::wire) const REMOVE_RECURSIVE: i32 = 503;
    pub(in crate::wire) const CHECK_STAT: i32 = 504;
    pub(in crate::wire) const TRY_REMOVE: i32 = 505;
    pub(in crate::wire) const FILTERED_LIST_WITH_STATS_AND_DATA: i32 = 506;
    pub(in crate::wire) const LIST_RECURSIVE: i32 = 507;
    pub(in crate::wire) const CLOSE_SESSION: i32 = -11;
    pub(in crate::wire) const ERROR: i32 = -1;
}

/// The `xid` of what nobody asked for.
pub(super) const NOTIFICATION_XID: i32 = -1;
/// The `xid` of pings and of the answers to them.
pub(super) const PING_XID: i32 = -2;
/// The state in which a client is told of an event: connected.
pub(super) const SYNC_CONNECTED: i32 = 3;

/// A result: 0, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) i32);

impl Code {
    pub(super) const OK: Code = Code(0);
    pub(super) const SYSTEM_ERROR: Code = Code(-1);
    pub(super) const RUNTIME_INCONSISTENCY: Code = Code(-2);
    pub(super) const CONNECTION_LOSS: Code = Code(-4);
    pub(super) const MARSHALLING_ERROR: Code = Code(-5);
    pub(super) const UNIMPLEMENTED: Code = Code(-6);
    pub(super) const BAD_ARGUMENTS: Code = Code(-8);
    pub(super) const NO_NODE: Code = Code(-101);
    pub(super) const INVALID_ACL: Code = Code(-114);
    pub(super) const AUTH_FAILED: Code = Code(-115);
    pub(super) const NO_WATCHER: Code = Code(-121);
    pub(super) const RECONFIG_DISABLED: Code = Code(-123);

    /// The number that ZooKeeper's clients know an error by.
    pub(super) fn of(code: ErrorCode) -> Code {
        match code {
            ErrorCode::NoNode => Code::NO_NODE,
            ErrorCode::NodeExists => Code(-110),
            ErrorCode::BadVersion | ErrorCode::ConditionFailed => Code(-103),
            ErrorCode::NotEmpty => Code(-111),
            ErrorCode::NoChildrenForEphemerals => Code(-108),
            ErrorCode::RolledBack => Code::OK,
            ErrorCode::NotTried => Code::RUNTIME_INCONSISTENCY,
            ErrorCode::BadArguments | ErrorCode::TooLarge | ErrorCode::SequenceOverflow => {
                Code::BAD_ARGUMENTS
            }
            ErrorCode::InvalidAcl => Code::INVALID_ACL,
            ErrorCode::NoAuth => Code(-102),
            ErrorCode::AuthFailed => Code::AUTH_FAILED,
            ErrorCode::SessionExpired => Code(-112),
            ErrorCode::SessionMoved => Code(-118),
            ErrorCode::NoWatcher => Code::NO_WATCHER,
            ErrorCode::Unimplemented => Code::UNIMPLEMENTED,
            ErrorCode::QuotaExceeded => Code(-125),
            ErrorCode::NoSpace => Code::SYSTEM_ERROR,
            ErrorCode::Throttled => Code(-127),
            ErrorCode::Unavailable | ErrorCode::OutcomeUnknown => Code::CONNECTION_LOSS,
            ErrorCode::NotReadOnly => Code(-119),
            ErrorCode::EphemeralOnLocalSession => Code(-120),
        }
    }

    /// Whether the connection is of no use after an answer with this code, so that its client
    /// should go to another server.
    pub(super) fn ends_connection(self) -> bool {
        self == Code::CONNECTION_LOSS || self == Code::of(ErrorCode::SessionMoved)
    }
}

/// The number of a kind of event.
pub(super) fn event_type(kind: EventKind) -> i32 {
    match kind {
        EventKind::Created => 1,
        EventKind::Deleted => 2,
        EventKind::DataChanged => 3,
        EventKind::ChildrenChanged => 4,
    }
}
