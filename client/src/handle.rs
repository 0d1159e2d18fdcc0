//! The client: what its users call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use conclave_proto::request::Reply;
use conclave_proto::{
    Acl, CreateMode, Identity, Op, ServerId, SessionId, Stat, WatchId, WatchKind, ZPath, Zxid,
};
use tokio::sync::oneshot;

use crate::Error;
use crate::builder::Builder;
use crate::chroot::{Chroot, IntoPath};
use crate::error::Operation;
use crate::list::{self, Children, List};
use crate::multi::{Multi, MultiRead};
use crate::queue::Command;
use crate::request::{Call, Create, Created, Node, Pending, Read, SetWatch, Write};
use crate::shared::Shared;
use crate::state::{State, States};
use crate::watch::Watch;

/// A client of Conclave: one session. Cloning is cheap, and all clones share the session.
///
/// The session ends, and its ephemeral nodes are deleted, when [`close`](Client::close) is called
/// or the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    pub(crate) handle: Arc<Handle>,
    pub(crate) chroot: Chroot,
}

/// Ends the session when the last clone of the client is dropped.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.order(Command::Close(None));
    }
}

/// Making a client, asking after its session, ending it.
impl Client {
    /// Starts to describe a client.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A client of these servers (`host:port`, separated by commas), with the defaults of the
    /// [`Builder`].
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub async fn connect(servers: impl Into<String>) -> Result<Client, Error> {
        Client::builder().servers(servers).connect().await
    }

    /// The same session, with paths that lie below `path`. The node need not exist.
    ///
    /// # Errors
    /// If it is not a path.
    pub fn under(&self, path: impl IntoPath) -> Result<Client, Error> {
        let root = self.chroot.to_server(&path.into_path()?)?;
        Ok(Client { handle: Arc::clone(&self.handle), chroot: Chroot::at(root) })
    }

    /// How the session is doing now.
    pub fn state(&self) -> State {
        self.shared().states.current()
    }

    /// How the session is doing from now on: the current state, then each new one.
    pub fn states(&self) -> States {
        self.shared().states.subscribe()
    }

    /// The session's id, which is the owner in the statistics of its ephemeral nodes.
    pub fn session(&self) -> SessionId {
        self.shared().session()
    }

    /// How long the session outlives its last sign of life, as the servers decided.
    pub fn session_timeout(&self) -> Duration {
        self.shared().timeout()
    }

    /// The server that the client is, or was last, connected to.
    pub fn server(&self) -> Option<ServerId> {
        self.shared().server()
    }

    /// The latest transaction that the client has seen. Hand it to another client, and its reads
    /// [`at_least`](Read::at_least) this fresh see everything that this client has seen.
    pub fn last_zxid(&self) -> Zxid {
        self.shared().last_zxid()
    }

    /// Until when the session is alive for certain, whatever happens to the connection: a session
    /// timeout after the client sent the last message that a server has answered. It moves on as
    /// long as the connection is well.
    ///
    /// What must not be done twice (by the holder of a lock, by a leader) may be done until then,
    /// as far as the clocks of this machine and of the servers run at the same speed.
    pub fn certain_until(&self) -> Instant {
        self.shared().certain_until().into_std()
    }

    /// Waits until the client accepts operations: until fewer than 65,536 operations and 64 MiB of
    /// them are waiting for their answers. An operation made when there is no room fails with
    /// [`Error::Overloaded`].
    pub async fn ready(&self) {
        self.shared().queue.room().await;
    }

    /// Ends the session, after everything that was asked before: its ephemeral nodes are deleted
    /// when this returns.
    ///
    /// # Errors
    /// If no server confirms it; then the session ends when it expires.
    pub async fn close(self) -> Result<(), Error> {
        let (completion, outcome) = oneshot::channel();
        let shared = Arc::clone(self.shared());
        shared.queue.order(Command::Close(Some(completion)));
        match outcome.await {
            // Without a word: it had ended before.
            Ok(Ok(_)) | Err(_) => Ok(()),
            Ok(Err(failure)) => {
                Err(failure.into_error(Operation::new("close", None), shared.operation_timeout))
            }
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

/// Writing.
impl Client {
    /// Creates a node. Its parent must exist.
    pub fn create(&self, path: impl IntoPath, data: impl Into<Bytes>) -> Create<'_> {
        let data = Some(data.into());
        let mode = CreateMode::PERSISTENT;
        let op = |path| Op::Create { path, data, acl: Acl::open(), mode };
        let call = Call::new(self, "create", path.into_path(), op, |reply, _, _| {
            if let Reply::Created { path, stat } = reply {
                Some(Created { path, stat })
            } else {
                None
            }
        });
        Create { client: self, call }
    }

    /// Deletes a node without children. Answer: the transaction that did it.
    pub fn delete(&self, path: impl IntoPath) -> Write<'_, Zxid> {
        let op = |path| Op::Delete { path, version: None };
        Write { client: self, call: Call::new(self, "delete", path.into_path(), op, done) }
    }

    /// Deletes a node and everything below it, deepest first. Answer: how many nodes.
    ///
    /// Each transaction deletes a bounded number of nodes, so that others may see some of them
    /// gone and some not, and an error may come when some are deleted already.
    pub fn delete_recursive(
        &self,
        path: impl IntoPath,
    ) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
        list::delete_recursive(self, path.into_path())
    }

    /// Replaces a node's data. Answer: its new statistics.
    pub fn set(&self, path: impl IntoPath, data: impl Into<Bytes>) -> Write<'_, Stat> {
        let data = Some(data.into());
        let op = |path| Op::SetData { path, data, version: None };
        Write { client: self, call: Call::new(self, "set", path.into_path(), op, stat) }
    }

    /// Replaces a node's access control list. Answer: its new statistics.
    pub fn set_acl(&self, path: impl IntoPath, acl: Vec<Acl>) -> Write<'_, Stat> {
        let op = |path| Op::SetAcl { path, acl, version: None };
        Write { client: self, call: Call::new(self, "set the ACL of", path.into_path(), op, stat) }
    }

    /// Several writes that are done all or not at all, if conditions hold.
    pub fn multi(&self) -> Multi<'_> {
        Multi::new(self)
    }

    /// Fails unless the node exists and, if one is given, has that version. Unlike a read, this
    /// goes through the leader.
    pub fn check(&self, path: impl IntoPath, version: Option<i32>) -> Pending<Zxid> {
        let op = |path| Op::Check { path, version };
        Call::new(self, "check", path.into_path(), op, done).send(self)
    }

    /// Waits until the server that the client is connected to has everything that was committed
    /// when the request reached the leader. Answer: the transaction it has come to.
    pub fn sync(&self) -> Pending<Zxid> {
        let op = |path| Op::Sync { path };
        let mut call = Call::new(self, "sync", Ok(ZPath::root()), op, done);
        call.operation.path = None;
        call.send(self)
    }
}

/// Reading.
impl Client {
    /// Reads a node's data and statistics.
    pub fn get(&self, path: impl IntoPath) -> Read<'_, Node> {
        let op = |path| Op::Get { path, watch: None };
        let call = Call::new(self, "get", path.into_path(), op, |reply, _, _| node(reply));
        Read { client: self, call }
    }

    /// Reads a node's statistics; `None` if it does not exist.
    pub fn exists(&self, path: impl IntoPath) -> Read<'_, Option<Stat>> {
        let op = |path| Op::Exists { path, watch: None };
        let mut call = Call::new(self, "exists", path.into_path(), op, |reply, zxid, watch| {
            stat(reply, zxid, watch).map(Some)
        });
        call.missing = Some(|_| Some(None));
        Read { client: self, call }
    }

    /// Reads the names of a node's children, in order.
    ///
    /// A long list is read a page at a time. If children come and go meanwhile, each one that was
    /// there throughout is in it once.
    pub fn children(&self, path: impl IntoPath) -> Children<'_, Vec<String>> {
        Children::new(self, path.into_path())
    }

    /// Lists a node's children, optionally with their statistics and data: one page, or a stream.
    pub fn list(&self, path: impl IntoPath) -> List<'_> {
        List::new(self, path.into_path(), false)
    }

    /// Lists everything below a node, parents before children, paths relative to the node: one
    /// page, or a stream.
    pub fn list_recursive(&self, path: impl IntoPath) -> List<'_> {
        List::new(self, path.into_path(), true)
    }

    /// Counts everything below a node.
    pub fn count_descendants(&self, path: impl IntoPath) -> Read<'_, u64> {
        let op = |path| Op::CountDescendants { path };
        let name = "count the nodes below";
        let call = Call::new(self, name, path.into_path(), op, |reply, _, _| {
            if let Reply::Count(count) = reply { Some(count) } else { None }
        });
        Read { client: self, call }
    }

    /// Reads a node's access control list, with its statistics.
    pub fn get_acl(&self, path: impl IntoPath) -> Read<'_, (Vec<Acl>, Stat)> {
        let op = |path| Op::GetAcl { path };
        let name = "get the ACL of";
        let call = Call::new(self, name, path.into_path(), op, |reply, _, _| {
            if let Reply::Acl { acl, stat } = reply { Some((acl, stat)) } else { None }
        });
        Read { client: self, call }
    }

    /// Lists the session's ephemeral nodes at or below a path.
    pub fn ephemerals(&self, below: impl IntoPath) -> Read<'_, Vec<ZPath>> {
        let op = |path: ZPath| Op::Ephemerals { prefix: path.as_str().to_owned() };
        let name = "list the ephemeral nodes below";
        let call = Call::new(self, name, below.into_path(), op, |reply, _, _| {
            if let Reply::Paths(paths) = reply { Some(paths) } else { None }
        });
        Read { client: self, call }
    }

    /// Several reads of one moment.
    pub fn multi_read(&self) -> MultiRead<'_> {
        MultiRead::new(self)
    }
}

/// Watching.
impl Client {
    /// Sets a watch.
    pub fn watch(&self, path: impl IntoPath, kind: WatchKind) -> SetWatch<'_> {
        let id = WatchId::default();
        let op = |path| Op::Watch { id, path, kind, since: None, with_value: false };
        let mut call = Call::new(self, "watch", path.into_path(), op, |reply, _, watch| {
            if reply == Reply::Done { watch } else { None }
        });
        call.sets_watch = true;
        SetWatch { client: self, call }
    }

    /// Reads a node, and watches for its next change or its deletion: the first after what was
    /// read. No watch is set if the node does not exist.
    pub fn get_and_watch(&self, path: impl IntoPath) -> Read<'_, (Node, Watch)> {
        let op = |path| Op::Get { path, watch: None };
        let mut call = Call::new(self, "get", path.into_path(), op, |reply, _, watch| {
            Some((node(reply)?, watch?))
        });
        call.sets_watch = true;
        Read { client: self, call }
    }

    /// Reads a node's statistics, and watches for its next change, deletion or creation: the first
    /// after what was read.
    pub fn exists_and_watch(&self, path: impl IntoPath) -> Read<'_, (Option<Stat>, Watch)> {
        let op = |path| Op::Exists { path, watch: None };
        let mut call = Call::new(self, "exists", path.into_path(), op, |reply, zxid, watch| {
            Some((stat(reply, zxid, None).map(Some)?, watch?))
        });
        call.sets_watch = true;
        call.missing = Some(|watch| Some((None, watch?)));
        Read { client: self, call }
    }

    /// Reads the names of a node's children, in order, and watches for the next creation or
    /// deletion of one, or the node's own deletion: the first after what was read. No watch is set
    /// if the node does not exist.
    pub fn children_and_watch(&self, path: impl IntoPath) -> Children<'_, (Vec<String>, Watch)> {
        Children::watching(self, path.into_path())
    }
}

/// Identities.
impl Client {
    /// Adds an identity to the session. It is presented again on every later connection, and its
    /// credentials are kept in memory for that.
    pub fn authenticate(&self, scheme: &str, credentials: impl Into<Bytes>) -> Pending<()> {
        let op = Op::Authenticate { scheme: scheme.to_owned(), credentials: credentials.into() };
        let operation = Operation::new("authenticate", None);
        Call::of(operation, Ok(op), |reply, _, _| (reply == Reply::Done).then_some(())).send(self)
    }

    /// The identities that access control lists are checked against.
    pub fn who_am_i(&self) -> Pending<Vec<Identity>> {
        let operation = Operation::new("who am I", None);
        Call::of(operation, Ok(Op::WhoAmI), |reply, _, _| {
            if let Reply::Identities(identities) = reply { Some(identities) } else { None }
        })
        .send(self)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("session", &self.session())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

fn done(reply: Reply, zxid: Zxid, _: Option<Watch>) -> Option<Zxid> {
    (reply == Reply::Done).then_some(zxid)
}

fn stat(reply: Reply, _: Zxid, _: Option<Watch>) -> Option<Stat> {
    if let Reply::Stat(stat) = reply { Some(stat) } else { None }
}

fn node(reply: Reply) -> Option<Node> {
    if let Reply::Data { data, stat } = reply { Some(Node { data, stat }) } else { None }
}
