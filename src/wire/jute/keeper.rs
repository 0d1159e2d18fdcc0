//! What ClickHouse Keeper adds to the protocol, for ClickHouse, which asks a server first what of it
//! the server knows. It asks by reading a node, which is there for it alone: it says something of
//! this port, and nothing of the tree.
//!
//! Where the two protocols have different answers to the same request, whoever has asked this
//! question is answered as ClickHouse Keeper does: see [`Dialect`].

use bytes::Bytes;
use conclave_proto::request::{Condition, Page, StatTest, Test};
use conclave_proto::{Op, SessionId, WatchKind, Zxid};

use super::codec::Body;
use super::numbers::{Code, opcode};
use super::request::{Answer, NewNode, changed, existing, new_node, read, to_delete};
use super::watches::{Slot, Watches};
use crate::limits;

/// The node that says what is known: one bit for each addition, the first one the highest bit.
///
/// | bit | addition | known |
/// |---|---|---|
/// | 0 | lists of permanent or ephemeral children only | yes |
/// | 1 | several reads in one request | yes |
/// | 2 | a check that a node does not exist | yes |
/// | 3 | creation that does not mind an existing node | yes |
/// | 4 | recursive deletion | yes |
/// | 5 | watches set by several reads in one request | yes |
/// | 6 | a check of statistics | yes |
/// | 7 | persistent watches | yes, as ZooKeeper |
/// | 8 | creation that answers statistics | yes, as ZooKeeper |
/// | 9 | deletion that does not mind a missing node | yes |
/// | 10 | lists with statistics and data | yes |
/// | 11 | lists of everything below a node | yes |
/// | 12 | nodes with a time to live | yes, as ZooKeeper |
/// | 13 | containers | yes, as ZooKeeper |
/// | 14 | a node that says how long a request may be | yes |
const FEATURES: [u8; 2] = [0b1111_1111, 0b1111_1110];

/// The data of a node that tells clients what is known here.
pub(super) fn advertised(path: &str) -> Option<Bytes> {
    match path {
        "/keeper/feature_flags" => Some(Bytes::from_static(&FEATURES)),
        // The same for older clients, which know the first three.
        "/keeper/api_version" => Some(Bytes::from_static(b"3")),
        "/keeper/max_request_size" => Some(limits::JUTE_FRAME_BYTES.to_string().into()),
        _ => None,
    }
}

/// Whose forms of an answer a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// ZooKeeper's.
    ZooKeeper,
    /// ClickHouse Keeper's: of a client that has asked what of its additions are known. A read that
    /// fails among several says in its header whose answer it is, and has no body; one that does
    /// not fail sets a watch if it is told to, as it does alone.
    Keeper,
}

/// Which children are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only {
    All,
    Permanent,
    Ephemeral,
}

/// A list of children as ClickHouse asks for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    pub(super) only: Only,
    /// Whether the children's statistics, and their data, follow.
    pub(super) with: Option<(bool, bool)>,
}

/// One of these requests; `None`: it is none of them.
pub(super) fn understand(
    kind: i32,
    body: &mut Body,
    watches: &Watches,
) -> Result<Option<(Op, Answer)>, Code> {
    Ok(Some(match kind {
        opcode::FILTERED_LIST | opcode::FILTERED_LIST_WITH_STATS_AND_DATA => {
            list(kind, body, watches)?
        }
        opcode::LIST_RECURSIVE => list_recursive(body)?,
        opcode::CREATE_IF_NOT_EXISTS => (write(kind, body)?, Answer::Created { with_stat: false }),
        kind if is_write(kind) => (write(kind, body)?, Answer::Nothing),
        _ => return Ok(None),
    }))
}

/// A list of children, and what its answer looks like.
pub(super) fn list(kind: i32, body: &mut Body, watches: &Watches) -> Result<(Op, Answer), Code> {
    let (path, watch) = read(body, WatchKind::Children)?;
    let only = match body.byte()? {
        0 => Only::All,
        1 => Only::Permanent,
        2 => Only::Ephemeral,
        _ => return Err(Code::MARSHALLING_ERROR),
    };
    let with = match kind {
        opcode::FILTERED_LIST => None,
        _ => Some((body.bool()?, body.bool()?)),
    };
    let with_stat = only != Only::All || with.is_some();
    let with_data = with.is_some_and(|(_, data)| data);
    let page = Page { with_stat, with_data, ..Page::WHOLE };
    let id = watch.as_ref().map(|_| watches.id(&path, Slot::Children));
    let filter = Filter { only, with };
    Ok((Op::Children { path, watch: id, page }, Answer::Filtered { filter, watch }))
}

/// Everything below a node, as full paths; too much is refused.
fn list_recursive(body: &mut Body) -> Result<(Op, Answer), Code> {
    let path = existing(&body.text()?)?;
    let limit = body.unsigned_int()?;
    // To the tree, 0 is as many as there may be.
    let page = Page { limit: limit.clamp(1, PAGE_ENTRIES), ..Page::default() };
    Ok((Op::ListRecursive { path: path.clone(), page }, Answer::Tree { path, limit }))
}

/// The most entries of a page, as the pages count.
#[expect(clippy::cast_possible_truncation, reason = "it is far below")]
const PAGE_ENTRIES: u32 = limits::PAGE_ENTRIES as u32;

/// One of the writes, which may be in a multi.
pub(super) fn write(kind: i32, body: &mut Body) -> Result<Op, Code> {
    match kind {
        opcode::CREATE_IF_NOT_EXISTS => {
            let NewNode { path, data, acl, mode } = new_node(opcode::CREATE, body)?;
            Ok(Op::CreateIfMissing { path, data, acl, mode })
        }
        opcode::TRY_REMOVE => {
            let (path, version) = to_delete(body)?;
            Ok(Op::DeleteIfExists { path, version })
        }
        opcode::REMOVE_RECURSIVE => {
            let (path, limit) = (body.text()?, body.unsigned_int()?);
            // To the tree, 0 is as many as there may be.
            let limit = (limit > 0).then_some(limit).ok_or(Code::BAD_ARGUMENTS)?;
            Ok(Op::DeleteTree { path: changed(&path)?, limit })
        }
        opcode::CHECK_NOT_EXISTS => {
            let (path, version) = (body.text()?, body.int()?);
            let path = changed(&path)?;
            // That it does not exist in one version only is not asked by ClickHouse.
            if version != -1 {
                return Err(Code::BAD_ARGUMENTS);
            }
            Ok(Op::Require(Condition { path, test: Test::Missing }))
        }
        opcode::CHECK_STAT => {
            let (path, version) = (body.text()?, body.int()?);
            let test = stat_test(version, body)?;
            let (path, test) = (changed(&path)?, Test::Stat(Box::new(test?)));
            Ok(Op::Require(Condition { path, test }))
        }
        _ => Err(Code::UNIMPLEMENTED),
    }
}

/// Statistics that a node must have, each of which may be left open by -1; the version stands in
/// front of them once more. That the two contradict each other (the inner result) is found out only
/// once all has been read.
fn stat_test(version: i32, body: &mut Body) -> Result<Result<StatTest, Code>, Code> {
    let long = |number: i64| (number != -1).then_some(number);
    let int = |number: i32| (number != -1).then_some(number);
    let zxid = |number: i64| long(number).map(|number| Zxid::from_bits(number.cast_unsigned()));
    let mut test = StatTest {
        czxid: zxid(body.long()?),
        mzxid: zxid(body.long()?),
        ctime_ms: long(body.long()?),
        mtime_ms: long(body.long()?),
        version: int(body.int()?),
        cversion: int(body.int()?),
        aversion: int(body.int()?),
        ephemeral_owner: long(body.long()?).map(|owner| SessionId(owner.cast_unsigned())),
        data_length: int(body.int()?).map(i32::cast_unsigned),
        num_children: int(body.int()?).map(i32::cast_unsigned),
        pzxid: zxid(body.long()?),
    };
    let Some(version) = int(version) else { return Ok(Ok(test)) };
    if test.version.is_some_and(|other| other != version) {
        return Ok(Err(Code::BAD_ARGUMENTS));
    }
    test.version = Some(version);
    Ok(Ok(test))
}

/// Whether it is the number of such a write.
pub(super) fn is_write(kind: i32) -> bool {
    matches!(
        kind,
        opcode::CREATE_IF_NOT_EXISTS
            | opcode::TRY_REMOVE
            | opcode::REMOVE_RECURSIVE
            | opcode::CHECK_NOT_EXISTS
            | opcode::CHECK_STAT
    )
}
