//! What is known of a znode: its statistics, who may do what with it, and how long it lives.

use std::sync::{Arc, LazyLock};

use crate::ids::SessionId;
use crate::ids::Zxid;

/// A znode's statistics, with ZooKeeper's meanings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The transaction that created it.
    pub czxid: Zxid,
    /// The transaction that last changed its data.
    pub mzxid: Zxid,
    /// The transaction that last added or removed a child.
    pub pzxid: Zxid,
    /// When it was created, in ms since 1970 by the leader's clock.
    pub ctime_ms: i64,
    /// When its data last changed, in ms since 1970 by the leader's clock.
    pub mtime_ms: i64,
    /// How often its data has changed (wraps as ZooKeeper's does).
    pub version: i32,
    /// How often its children have changed.
    pub cversion: i32,
    /// How often its ACL has changed.
    pub aversion: i32,
    /// The session it dies with, [`SessionId::NONE`] if it is not ephemeral.
    pub ephemeral_owner: SessionId,
    /// The length of its data in bytes.
    pub data_length: u32,
    /// The number of its children.
    pub num_children: u32,
}

/// Permissions, as a set of bits: the same as ZooKeeper's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Perms(pub u8);

impl Perms {
    /// Read data and list children.
    pub const READ: Perms = Perms(1);
    /// Set data.
    pub const WRITE: Perms = Perms(2);
    /// Create children.
    pub const CREATE: Perms = Perms(4);
    /// Delete children.
    pub const DELETE: Perms = Perms(8);
    /// Set the ACL.
    pub const ADMIN: Perms = Perms(16);
    /// All of them.
    pub const ALL: Perms = Perms(31);

    /// Whether every permission of `other` is in `self`.
    pub const fn contains(self, other: Perms) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Who somebody is: `world:anyone`, `digest:user:hash`, `ip:10.0.0.1`…
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The scheme that vouches for it.
    pub scheme: String,
    /// The name within the scheme.
    pub id: String,
}

static OPEN: LazyLock<Arc<[Acl]>> = LazyLock::new(|| {
    let anyone = Identity { scheme: "world".into(), id: "anyone".into() };
    [Acl { perms: Perms::ALL, identity: anyone }].into()
});

/// One line of an access control list: what one identity may do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acl {
    /// The permissions granted.
    pub perms: Perms,
    /// To whom.
    pub identity: Identity,
}

impl Acl {
    /// Everybody may do everything: what a node has unless its creator says otherwise. It is one and
    /// the same piece of memory, since most nodes have it.
    pub fn open() -> Arc<[Acl]> {
        Arc::clone(&OPEN)
    }

    /// These lines as they are shared: [`Acl::open`] if they say the same.
    pub fn share(lines: &[Acl]) -> Arc<[Acl]> {
        if Acl::is_open(lines) { Acl::open() } else { lines.into() }
    }

    /// Whether these lines say the same as [`Acl::open`].
    pub fn is_open(lines: &[Acl]) -> bool {
        std::ptr::eq(lines, &**OPEN) || *lines == OPEN[..]
    }

    /// About how many bytes these lines take: no more than in a request.
    pub fn bytes_of(lines: &[Acl]) -> usize {
        lines.iter().map(|line| 8 + line.identity.scheme.len() + line.identity.id.len()).sum()
    }
}

/// How long a new node lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is deleted.
    #[default]
    Persistent,
    /// Until its session ends. It can have no children.
    Ephemeral,
    /// As [`Lifetime::Ephemeral`]; but if the session expires, which is not the same as that it is
    /// closed, the node stays for this many ms, as a TTL node of no session.
    Lingering(u64),
    /// Until its last child is deleted.
    Container,
    /// Until it has no children and its data has not changed for this many ms.
    Ttl(u64),
}

impl Lifetime {
    /// Whether the node belongs to a session and goes with it.
    pub const fn is_ephemeral(self) -> bool {
        matches!(self, Lifetime::Ephemeral | Lifetime::Lingering(_))
    }
}

/// How a node is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateMode {
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Whether the parent's counter is appended to its name, as ten or more decimal digits.
    pub sequential: bool,
    /// Whether it is a place in a line: whoever makes it waits for its siblings. While it has two or
    /// more, the leader may keep it back until another write comes, or for a tick (10 ms unless
    /// configured), to write both to the disk at once.
    pub in_line: bool,
    /// The number of its first sequential child, below ten billion. Greater than 0 for a node that is
    /// restored, so that the children to come are numbered after those that are restored with it.
    pub first_child: u64,
}

impl CreateMode {
    /// Persistent, under the very name given.
    pub const PERSISTENT: CreateMode = CreateMode {
        lifetime: Lifetime::Persistent,
        sequential: false,
        in_line: false,
        first_child: 0,
    };
    /// Ephemeral, under the very name given.
    pub const EPHEMERAL: CreateMode =
        CreateMode { lifetime: Lifetime::Ephemeral, ..CreateMode::PERSISTENT };
    /// Persistent, numbered.
    pub const PERSISTENT_SEQUENTIAL: CreateMode =
        CreateMode { sequential: true, ..CreateMode::PERSISTENT };
    /// Ephemeral, numbered.
    pub const EPHEMERAL_SEQUENTIAL: CreateMode =
        CreateMode { sequential: true, ..CreateMode::EPHEMERAL };
}
