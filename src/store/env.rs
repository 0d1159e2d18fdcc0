//! The tree on disk: one LMDB environment with one table.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use conclave_proto::{SessionId, ZPath};
use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, RoRange, RoTxn, RwTxn, WithoutTls};

use super::codec;
use super::error::{IoContext, StoreError, TreeContext};
use super::gaps::Gaps;
use super::home::{Home, Lock, space_at};
use super::key::{HashKey, Key, Scope, as_ephemeral, as_session};
use crate::tree::{Meta, Node, SessionRecord};

/// The file in a tree's directory that says that it was found damaged.
pub(super) const DAMAGE_MARK: &str = "damaged";
/// The file in a tree's directory that has a byte for each start since the last checkpoint.
pub(super) const STARTS: &str = "starts";

/// The file by which LMDB knows who reads. It is written through memory and its blocks are not
/// reserved before: on a disk without room, that ends the process by a signal.
const LOCK_FILE: &str = "lock.mdb";
/// More than it takes, in bytes.
const LOCK_ROOM: u64 = 64 << 10;

/// How many views may be open at once: the loop's, a checkpoint's and those of snapshots.
const READERS: u32 = 512;

type Table = Database<'static, Raw, Raw>;

/// A key and its value.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

/// An open environment. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tree {
    env: Env<WithoutTls>,
    table: Table,
    path: Arc<Path>,
    /// Held until the last user of the tree is gone.
    _lock: Arc<Lock>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tree").field(&self.path).finish()
    }
}

impl Tree {
    /// Open the environment in that directory, which exists; an empty one becomes an empty tree.
    pub(super) fn open(home: &Home, path: &Path) -> Result<Tree, StoreError> {
        let lock = path.join(LOCK_FILE);
        if !lock.exists() && space_at(path)?.free < LOCK_ROOM {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull)).at("create", &lock);
        }
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(home.map_bytes).max_readers(READERS);
        // SAFETY: nobody else modifies the file: the directory is locked against other processes,
        // and this one opens it nowhere else. No unsafe flag is set.
        #[expect(unsafe_code, reason = "LMDB maps its file; the lock on the directory guards it")]
        let env = unsafe { options.open(path) }.in_tree("open", path)?;
        env.clear_stale_readers().in_tree("open", path)?;
        let txn = env.read_txn().in_tree("open", path)?;
        let table = env
            .open_databases_and_commit(txn, |opener, txn| {
                opener.open_database::<Raw, Raw>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
            })
            .in_tree("open", path)?
            .commit()
            .flatten()
            .expect("the unnamed database always exists");
        Ok(Tree { env: env.clone(), table, path: path.into(), _lock: Arc::clone(&home.lock) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A view of the last transaction. It pins that transaction's pages until it is dropped.
    pub(super) fn view(&self) -> Result<View, StoreError> {
        let txn = self.env.clone().static_read_txn().in_tree("read", &self.path)?;
        Ok(View { tree: self.clone(), txn, gaps: RefCell::default() })
    }

    /// Begin a transaction. It is durable once committed.
    pub(super) fn write(&self) -> Result<Update<'_>, StoreError> {
        let txn = self.env.write_txn().in_tree("write", &self.path)?;
        Ok(Update { tree: self, txn })
    }

    /// The bytes in use and those reserved.
    pub(super) fn usage(&self) -> (u64, u64) {
        let stat = self.env.unnamed_database_stat();
        let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        (pages as u64 * u64::from(stat.page_size), self.env.info().map_size as u64)
    }
}

/// A view of one moment of the tree on disk.
pub(super) struct View {
    tree: Tree,
    txn: RoTxn<'static, WithoutTls>,
    gaps: RefCell<Gaps>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("tree", &self.tree).finish_non_exhaustive()
    }
}

impl View {
    /// The number of the transaction it is a view of.
    pub(super) fn transaction(&self) -> u64 {
        self.txn.id() as u64
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn damaged(&self, what: impl fmt::Display) -> StoreError {
        StoreError::damaged(&self.tree.path, what)
    }

    fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        self.tree.table.get(&self.txn, key).in_tree("read", &self.tree.path)
    }

    /// The hash key and the state as a whole; `None` if the tree is empty.
    pub(super) fn meta(&self) -> Result<Option<(HashKey, Meta)>, StoreError> {
        let key = Key::meta();
        let Some(value) = self.get(&key)? else { return Ok(None) };
        let (hash_key, meta) = codec::decode_meta(&key, value)
            .ok_or_else(|| self.damaged("the record of the whole state does not match"))?;
        Ok(Some((HashKey(hash_key), meta)))
    }

    /// The node at this path, which has this key.
    pub(super) fn node(&self, key: &[u8], path: &ZPath) -> Result<Option<Node>, StoreError> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        codec::decode_node(key, value).map(Some).ok_or_else(|| self.damaged_node(path))
    }

    /// Whether there is a node at this path, which has this key: for those who expect that there is
    /// none.
    pub(super) fn contains(&self, key: &[u8], path: &ZPath) -> Result<bool, StoreError> {
        let mut gaps = self.gaps.borrow_mut();
        if gaps.contain(key) {
            return Ok(false);
        }
        let records = self.range(key, true)?;
        let mut records = records.map(|record| record.in_tree("read", &self.tree.path)).peekable();
        if let Some(Ok((found, value))) = records.peek()
            && *found == key
        {
            return match codec::unseal(key, value) {
                Some(_) => Ok(true),
                None => Err(self.damaged_node(path)),
            };
        }
        gaps.add(key, records.map(|record| record.map(|(key, _)| key)))?;
        Ok(false)
    }

    fn damaged_node(&self, path: &ZPath) -> StoreError {
        self.damaged(format_args!("the record of node {path} does not match"))
    }

    /// Every session, in order.
    pub(super) fn sessions(&self) -> Result<Vec<(SessionId, SessionRecord)>, StoreError> {
        self.range(Scope::sessions().prefix(), true)?
            .map(|entry| {
                let (key, value) = entry.in_tree("read", &self.tree.path)?;
                as_session(key)
                    .and_then(|id| Some((id, codec::decode_session(key, value)?)))
                    .ok_or_else(|| self.damaged("the record of a session does not match"))
            })
            .collect()
    }

    /// How many ephemeral nodes the sessions have that have any.
    pub(super) fn ephemeral_counts(&self) -> Result<BTreeMap<SessionId, usize>, StoreError> {
        let mut counts = BTreeMap::new();
        // Nobody's nodes would come before everybody's.
        for entry in self.range(Scope::ephemerals(SessionId::NONE).prefix(), true)? {
            let (key, _) = entry.in_tree("read", &self.tree.path)?;
            let Some(session) = as_ephemeral(key) else { break };
            *counts.entry(session).or_default() += 1;
        }
        Ok(counts)
    }

    /// Every record from `start` on; `inclusive` tells whether one with that very key counts.
    pub(super) fn range(
        &self,
        start: &[u8],
        inclusive: bool,
    ) -> Result<RoRange<'_, Raw, Raw>, StoreError> {
        let start = if inclusive { Bound::Included(start) } else { Bound::Excluded(start) };
        let range = (start, Bound::<&[u8]>::Unbounded);
        self.tree.table.range(&self.txn, &range).in_tree("read", &self.tree.path)
    }

    /// The texts of that scope that come after `after`, in the order of their bytes.
    pub(super) fn texts(&self, scope: Scope, after: &str) -> Result<Texts<'_>, StoreError> {
        let start = scope.seek(after);
        let records = self.range(&start, true)?;
        Ok(Texts {
            view: self,
            scope,
            after: after.to_owned(),
            records,
            group: Vec::new(),
            ahead: None,
        })
    }
}

/// See [`View::texts`].
pub(super) struct Texts<'v> {
    view: &'v View,
    scope: Scope,
    after: String,
    records: RoRange<'v, Raw, Raw>,
    /// Texts whose order the keys do not show, sorted, the first of them last.
    group: Vec<&'v str>,
    /// A record that was read but belongs to what follows the group.
    ahead: Option<Pair<'v>>,
}

impl<'v> Texts<'v> {
    /// The next text, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<&'v str>, StoreError> {
        loop {
            if let Some(text) = self.group.pop() {
                return Ok(Some(text));
            }
            let Some((key, value)) = self.record()? else { return Ok(None) };
            if self.scope.ambiguous(key).is_some() {
                self.gather(key, value)?;
            } else {
                let text = self.text(key, value)?;
                // Nobody has an empty text, which therefore comes before all.
                if text > self.after.as_str() {
                    return Ok(Some(text));
                }
            }
        }
    }

    fn record(&mut self) -> Result<Option<Pair<'v>>, StoreError> {
        let record = match self.ahead.take() {
            Some(record) => Some(record),
            None => self.records.next().transpose().in_tree("read", &self.view.tree.path)?,
        };
        Ok(record.filter(|(key, _)| key.starts_with(self.scope.prefix())))
    }

    /// Take every text that shares what the keys show of this one.
    fn gather(&mut self, key: &'v [u8], value: &'v [u8]) -> Result<(), StoreError> {
        let shared = self.scope.ambiguous(key);
        let mut next = Some((key, value));
        while let Some((key, value)) = next {
            if self.scope.ambiguous(key) != shared {
                self.ahead = next;
                break;
            }
            let text = self.text(key, value)?;
            if text > self.after.as_str() {
                self.group.push(text);
            }
            next = self.record()?;
        }
        self.group.sort_unstable_by(|a, b| b.cmp(a));
        Ok(())
    }

    fn text(&self, key: &'v [u8], value: &'v [u8]) -> Result<&'v str, StoreError> {
        let text = self.scope.text(key, value);
        text.ok_or_else(|| self.view.damaged("an entry of a listing does not match"))
    }
}

/// A transaction that changes the tree on disk.
pub(super) struct Update<'t> {
    tree: &'t Tree,
    txn: RwTxn<'t>,
}

impl Update<'_> {
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.tree.table.put(&mut self.txn, key, value).in_tree("write", &self.tree.path)
    }

    /// Put a record that comes after all others; `false` if it does not.
    pub(super) fn append(&mut self, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let flags = heed::PutFlags::APPEND;
        match self.tree.table.put_with_flags(&mut self.txn, flags, key, value) {
            Ok(()) => Ok(true),
            Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => Ok(false),
            Err(error) => Err(error).in_tree("write", &self.tree.path),
        }
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Result<bool, StoreError> {
        self.tree.table.delete(&mut self.txn, key).in_tree("write", &self.tree.path)
    }

    pub(super) fn commit(self) -> Result<(), StoreError> {
        self.txn.commit().in_tree("commit", &self.tree.path)
    }
}

/// The directory of the tree with this number.
pub(super) fn directory(home: &Path, number: u64) -> PathBuf {
    home.join(format!("tree-{number}"))
}
