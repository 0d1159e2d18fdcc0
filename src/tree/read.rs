//! Every rule of reading, once.
//!
//! A read does bounded work: whatever may be long comes a page at a time, or is refused.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::request::{Entry, Page};
use conclave_proto::{Acl, ErrorCode, Fault, Identity, Op, Perms, Reply, SessionId, ZPath};

use super::acl::{self, Asker};
use super::nodes::{Node, Nodes};
use super::walk::{Level, Walk};
use crate::limits;

/// What statistics and their frame take, on either wire.
const STAT_BYTES: usize = 128;

/// What an entry of a listing takes beside its name, data and statistics.
const ENTRY_BYTES: usize = 16;

const _: () = assert!(limits::MULTI_OPS * STAT_BYTES < limits::FRAME_BYTES);

/// The answer to a read: `Get`, `Exists`, `Children`, `ListRecursive`, `GetAcl`, `Ephemerals`,
/// `CountDescendants` or `MultiRead`. Watches are not set here.
///
/// # Errors
/// `NoNode`, `NoAuth`; `TooLarge` where the answer has no pages and does not fit;
/// `BadArguments` for any other operation.
pub fn read(
    nodes: &impl Nodes,
    identities: &[Identity],
    session: SessionId,
    op: &Op,
) -> Result<Reply, Fault> {
    let view =
        View { nodes, asker: Asker::Client(identities), session, latest: RefCell::default() };
    Ok(view.read(op)?)
}

/// The state as one client may see it.
struct View<'a, N> {
    nodes: &'a N,
    asker: Asker<'a>,
    session: SessionId,
    /// The ACL that was asked last whether the node may be read, and what it said: children often have
    /// the same, and there may be thousands of them and of comparisons for each.
    latest: RefCell<Option<(Arc<[Acl]>, bool)>>,
}

impl<N: Nodes> View<'_, N> {
    fn read(&self, op: &Op) -> Result<Reply, ErrorCode> {
        match op {
            Op::Get { path, .. } => self.get(path),
            Op::Exists { path, .. } => Ok(Reply::Stat(self.readable(path)?.stat())),
            Op::Children { path, page, .. } => self.children(path, page),
            Op::ListRecursive { path, page } => self.list_recursive(path, page),
            Op::GetAcl { path } => self.acl(path),
            Op::Ephemerals { prefix } => self.ephemerals(prefix),
            Op::CountDescendants { path } => self.count(path),
            Op::MultiRead(ops) => self.multi_read(ops),
            Op::Create { .. }
            | Op::Delete { .. }
            | Op::DeleteRecursive { .. }
            | Op::SetData { .. }
            | Op::SetAcl { .. }
            | Op::Check { .. }
            | Op::Require(_)
            | Op::CreateIfMissing { .. }
            | Op::DeleteIfExists { .. }
            | Op::DeleteTree { .. }
            | Op::Guard { .. }
            | Op::Multi { .. }
            | Op::CreateSession { .. }
            | Op::CloseSession
            | Op::ExpireSession
            | Op::Reap { .. }
            | Op::Sync { .. }
            | Op::Watch { .. }
            | Op::Unwatch { .. }
            | Op::Authenticate { .. }
            | Op::WhoAmI => Err(ErrorCode::BadArguments),
        }
    }

    fn get(&self, path: &ZPath) -> Result<Reply, ErrorCode> {
        let node = self.readable(path)?;
        Ok(Reply::Data { stat: node.stat(), data: node.data })
    }

    fn children(&self, path: &ZPath, page: &Page) -> Result<Reply, ErrorCode> {
        let node = self.readable(path)?;
        let stat = node.stat();
        if *page == Page::WHOLE {
            let names = self.nodes.names(path, &node, limits::WHOLE_LIST_BYTES);
            return Ok(Reply::Names { names: names.ok_or(ErrorCode::TooLarge)?, stat });
        }
        let mut listing = Listing::new(page);
        // One more than fit, to know whether there are more.
        let expected = listing.most().0.saturating_add(1);
        let after = page.after.as_deref().unwrap_or_default();
        let mut level = Level::new(path.clone(), after).expecting(expected);
        listing.expect(stat.num_children);
        while let Some(name) = level.next_name(self.nodes) {
            let needs_node = page.with_stat || page.with_data;
            let node = if needs_node { self.visible(&level.child(&name)) } else { None };
            if !listing.add(name, node.as_ref()) {
                break;
            }
        }
        if page.is_whole() && listing.more {
            return Err(ErrorCode::TooLarge);
        }
        Ok(Reply::Children { entries: listing.entries, more: listing.more, stat })
    }

    fn list_recursive(&self, path: &ZPath, page: &Page) -> Result<Reply, ErrorCode> {
        let stat = self.readable(path)?.stat();
        let mut walk = match &page.after {
            None => Walk::new(path),
            Some(after) => {
                let last = path.descendant(after).map_err(|_| ErrorCode::BadArguments)?;
                Walk::resume(path, &last, |path| self.visible(path).is_some())
            }
        };
        let above = if path.is_root() { 1 } else { path.as_str().len() + 1 };
        let mut listing = Listing::new(page);
        while let Some(path) = walk.next(self.nodes) {
            let node = self.visible(&path);
            if !listing.add(path.as_str()[above..].to_owned(), node.as_ref()) {
                break;
            }
            if node.is_some_and(|node| node.num_children > 0) {
                walk.enter(path);
            }
        }
        Ok(Reply::Children { entries: listing.entries, more: listing.more, stat })
    }

    fn acl(&self, path: &ZPath) -> Result<Reply, ErrorCode> {
        let node = self.existing(path)?;
        self.asker.check(&node.acl, Perms(Perms::READ.0 | Perms::ADMIN.0))?;
        let acl = match self.asker.check(&node.acl, Perms::ADMIN) {
            Ok(()) => node.acl.to_vec(),
            Err(_) => acl::masked(&node.acl),
        };
        Ok(Reply::Acl { acl, stat: node.stat() })
    }

    /// A session's own nodes; no permission is asked, as in ZooKeeper.
    fn ephemerals(&self, prefix: &str) -> Result<Reply, ErrorCode> {
        let mut paths = self.nodes.ephemerals(self.session);
        paths.retain(|path| path.as_str().starts_with(prefix));
        let bytes: usize = paths.iter().map(|path| path.as_str().len() + 8).sum();
        if bytes <= limits::VALUE_BYTES {
            Ok(Reply::Paths(paths))
        } else {
            Err(ErrorCode::TooLarge)
        }
    }

    fn count(&self, path: &ZPath) -> Result<Reply, ErrorCode> {
        self.readable(path)?;
        if path.is_root() {
            return Ok(Reply::Count(self.nodes.meta().nodes - 1));
        }
        let mut walk = Walk::new(path);
        let mut count = 0;
        while let Some(below) = walk.next(self.nodes) {
            count += 1;
            if count > limits::COUNT_NODES {
                return Err(ErrorCode::TooLarge);
            }
            if self.nodes.node(&below).is_some_and(|node| node.num_children > 0) {
                walk.enter(below);
            }
        }
        Ok(Reply::Count(count))
    }

    fn multi_read(&self, ops: &[Op]) -> Result<Reply, ErrorCode> {
        if ops.len() > limits::MULTI_OPS {
            return Err(ErrorCode::TooLarge);
        }
        // Once an answer does not fit, nothing more is read: a refusal costs as much as what it
        // refuses.
        let mut left = Some(limits::FRAME_BYTES - ops.len() * STAT_BYTES);
        let mut answer = |op: &Op| {
            let room = left.ok_or(ErrorCode::TooLarge)?;
            if !matches!(op, Op::Get { .. } | Op::Exists { .. } | Op::Children { .. }) {
                return Err(Fault::from(ErrorCode::BadArguments));
            }
            let read = self.read(op);
            if read == Err(ErrorCode::TooLarge) {
                left = None;
            }
            let reply = read?;
            left = room.checked_sub(payload(&reply));
            left.map(|_| reply).ok_or(ErrorCode::TooLarge.into())
        };
        Ok(Reply::MultiRead(ops.iter().map(&mut answer).collect()))
    }

    fn existing(&self, path: &ZPath) -> Result<Node, ErrorCode> {
        self.nodes.node(path).ok_or(ErrorCode::NoNode)
    }

    fn readable(&self, path: &ZPath) -> Result<Node, ErrorCode> {
        let node = self.existing(path)?;
        let mut latest = self.latest.borrow_mut();
        let may_read = match &*latest {
            Some((acl, verdict)) if Arc::ptr_eq(acl, &node.acl) || *acl == node.acl => *verdict,
            Some(_) | None => {
                let verdict = self.asker.check(&node.acl, Perms::READ).is_ok();
                *latest = Some((node.acl.clone(), verdict));
                verdict
            }
        };
        may_read.then_some(node).ok_or(ErrorCode::NoAuth)
    }

    /// The node, if the client may know more of it than its name.
    fn visible(&self, path: &ZPath) -> Option<Node> {
        self.readable(path).ok()
    }
}

/// A page being filled.
struct Listing<'a> {
    page: &'a Page,
    entries: Vec<Entry>,
    bytes: usize,
    more: bool,
}

impl Listing<'_> {
    fn new(page: &Page) -> Listing<'_> {
        Listing { page, entries: Vec::new(), bytes: 0, more: false }
    }

    /// There are that many entries, of which a page may have the first.
    fn expect(&mut self, entries: u32) {
        /// A page that is asked for again and again has about as many.
        const AHEAD: usize = 128;
        self.entries.reserve(self.most().0.min(entries as usize).min(AHEAD));
    }

    /// The most entries of the page, and the most bytes.
    fn most(&self) -> (usize, usize) {
        match self.page.limit as usize {
            _ if self.page.is_whole() => (usize::MAX, limits::WHOLE_LIST_BYTES),
            0 => (limits::PAGE_ENTRIES, limits::PAGE_BYTES),
            limit => (limit.min(limits::PAGE_ENTRIES), limits::PAGE_BYTES),
        }
    }

    /// Add an entry and what is asked of its node, or find the page full. A page has at least one
    /// entry, whatever its size, so that a listing always gets on.
    fn add(&mut self, name: String, node: Option<&Node>) -> bool {
        let stat = node.filter(|_| self.page.with_stat).map(Node::stat);
        let data = node.filter(|_| self.page.with_data).and_then(|node| node.data.clone());
        let (most, most_bytes) = self.most();
        let entry = Entry { name, stat, data };
        self.bytes += size_of(&entry);
        let full = self.entries.len() >= most || self.bytes > most_bytes;
        if full && !self.entries.is_empty() {
            self.more = true;
            return false;
        }
        self.entries.push(entry);
        true
    }
}

/// The bytes of the answer to a read that vary with what is read.
pub(crate) fn payload(reply: &Reply) -> usize {
    if let Reply::Data { data, .. } = reply {
        data.as_ref().map_or(0, Bytes::len)
    } else if let Reply::Children { entries, .. } = reply {
        entries.iter().map(size_of).sum()
    } else if let Reply::Names { names, .. } = reply {
        names.count() as usize * ENTRY_BYTES + names.packed().len()
    } else if let Reply::Paths(paths) = reply {
        paths.iter().map(|path| ENTRY_BYTES + path.as_str().len()).sum()
    } else if let Reply::MultiRead(replies) = reply {
        replies.len() * STAT_BYTES + replies.iter().flatten().map(payload).sum::<usize>()
    } else if let Reply::Acl { acl, .. } = reply {
        Acl::bytes_of(acl)
    } else if let Reply::Identities(identities) = reply {
        identities.iter().map(|one| ENTRY_BYTES + one.scheme.len() + one.id.len()).sum()
    } else {
        0
    }
}

fn size_of(entry: &Entry) -> usize {
    let stat = if entry.stat.is_some() { STAT_BYTES } else { 0 };
    ENTRY_BYTES + entry.name.len() + stat + entry.data.as_ref().map_or(0, Bytes::len)
}
