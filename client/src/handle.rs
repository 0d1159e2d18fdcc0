//! The client: what its users call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use conclave_proto::request::Reply;
use conclave_proto::{
    Acl, CreateMode, Credentials, Identity, Op, ServerId, SessionId, Stat, WatchId, WatchKind,
    ZPath, Zxid,
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
use crate::session::Failure;
use crate::shared::Shared;
use crate::state::{State, States};
use crate::watch::Watch;

/// A client of Conclave: one session. Cloning is cheap, and all clones share the session.
///
/// The session ends, and its ephemeral nodes are deleted, when [`close`](Client::close) is called
/// or the last clone is dropped. After a drop the runtime has to run on for a moment to tell the
/// servers. If it ends first, as it does when `main` returns, nobody tells them, and the nodes stay
/// until the session expires: so end a program with `client.close().await`.
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
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), conclave_client::Error> {
    /// use conclave_client::Client;
    /// let servers = "host-1:7400,host-2:7400";
    /// let client = Client::builder().servers(servers).chroot("/app").connect().await?;
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// use conclave_client::State;
    /// let mut states = client.states();
    /// while let Some(state) = states.next().await {
    ///     match state {
    ///         State::Connected | State::Resumed => println!("carry on"),
    ///         State::Suspended => println!("looking for another server"),
    ///         State::Expired | State::Closed => println!("the ephemeral nodes are gone"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
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

    /// How long an operation may take: see [`Builder::operation_timeout`].
    pub fn operation_timeout(&self) -> Duration {
        self.shared().operation_timeout
    }

    /// The runtime that drives the client: the one in which it was made. Timers and tasks of what is
    /// built on the client can go by it, so that their futures can be polled anywhere.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.shared().runtime
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
    /// timeout after the latest sign of life of which the client knows that the leader counts from
    /// it, as a majority followed it. It moves on as long as the connection is well, and not while
    /// the server at the other end is cut off from the others.
    ///
    /// It is past once the session has ended, and always while the session is
    /// [read-only](Builder::read_only). Of a session that has not written yet nothing is certain if
    /// its server keeps such sessions to itself (`sessions.local`): it ends with that server.
    ///
    /// What must not be done twice (by the holder of a lock, by a leader) may be done until then,
    /// as far as the clocks of this machine and of the servers run at the same speed. An [`Instant`]
    /// stands still while a machine is suspended, on Linux for one: after it has gone on, this may
    /// be in the future by up to a session timeout though the session has expired meanwhile.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let leads = client.certain_until() > std::time::Instant::now();
    /// # Ok(())
    /// # }
    /// ```
    pub fn certain_until(&self) -> Instant {
        self.shared().certain_until().into_std()
    }

    /// Waits until the client accepts operations: until fewer than 65,536 operations and 64 MiB of
    /// them are waiting for their answers. An operation made when there is no room fails with
    /// [`Error::Overloaded`].
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// for i in 0..1_000_000 {
    ///     client.ready().await;
    ///     drop(client.set("/app/progress", i.to_string()).send());
    /// }
    /// client.sync().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ready(&self) {
        self.shared().queue.room().await;
    }

    /// Ends the session, after everything that was asked before: its ephemeral nodes are deleted
    /// when this returns. Several clones may do so at once.
    ///
    /// # Errors
    /// If no server confirms it; then the session ends when it expires.
    pub async fn close(self) -> Result<(), Error> {
        let (completion, outcome) = oneshot::channel();
        let shared = Arc::clone(self.shared());
        shared.queue.order(Command::Close(Some(completion)));
        match outcome.await {
            // Without a word: it had ended before. Expired: so it had, or it was closed by a server
            // that died before it could say so. Confirmed: to another one who closed it.
            Ok(Ok(_) | Err(Failure::Expired | Failure::Closed { confirmed: true })) | Err(_) => {
                Ok(())
            }
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// use conclave_client::{CreateMode, Lifetime};
    /// client.create("/app", "").await?;
    /// let member = client.create("/app/m-", "host 1").ephemeral().sequential().await?;
    /// println!("created {}", member.path); // /app/m-0000000000
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let node = client.get("/app/a").await?;
    /// client.delete("/app/a").version(node.stat.version).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete(&self, path: impl IntoPath) -> Write<'_, Zxid> {
        let op = |path| Op::Delete { path, version: None };
        Write { client: self, call: Call::new(self, "delete", path.into_path(), op, done) }
    }

    /// Deletes a node and everything below it, deepest first. Answer: how many nodes.
    ///
    /// Each transaction deletes a bounded number of nodes, so that others may see some of them
    /// gone and some not, and an error may come when some are deleted already.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let deleted = client.delete_recursive("/app").await?;
    /// println!("{deleted} nodes are gone");
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete_recursive(
        &self,
        path: impl IntoPath,
    ) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
        list::delete_recursive(self, path.into_path())
    }

    /// Replaces a node's data. Answer: its new statistics.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// use conclave_client::{Error, ErrorCode};
    /// let node = client.get("/app/counter").await?;
    /// let next = node.text().ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
    /// match client.set("/app/counter", next.to_string()).version(node.stat.version).await {
    ///     Ok(stat) => println!("it has version {} now", stat.version),
    ///     Err(error) if error.code() == Some(ErrorCode::BadVersion) => println!("too late"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn set(&self, path: impl IntoPath, data: impl Into<Bytes>) -> Write<'_, Stat> {
        let data = Some(data.into());
        let op = |path| Op::SetData { path, data, version: None };
        Write { client: self, call: Call::new(self, "set", path.into_path(), op, stat) }
    }

    /// Replaces a node's access control list. Answer: its new statistics.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// use conclave_client::{Acl, Identity, Perms};
    /// let anyone = Identity { scheme: "world".into(), id: "anyone".into() };
    /// client.set_acl("/app", vec![Acl { perms: Perms::READ, identity: anyone }]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_acl(&self, path: impl IntoPath, acl: impl Into<Arc<[Acl]>>) -> Write<'_, Stat> {
        let acl = acl.into();
        let op = |path| Op::SetAcl { path, acl, version: None };
        Write { client: self, call: Call::new(self, "set the ACL of", path.into_path(), op, stat) }
    }

    /// Several writes that are done all or not at all, if conditions hold.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// client
    ///     .multi()
    ///     .create("/app/a", "1")
    ///     .set("/app/b", "2", None)
    ///     .delete("/app/c", 3)
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn multi(&self) -> Multi<'_> {
        Multi::new(self)
    }

    /// Fails unless the node exists and, if one is given, has that version. Unlike a read, this
    /// goes through the leader.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// client.check("/app/config", 3).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn check(&self, path: impl IntoPath, version: impl Into<Option<i32>>) -> Pending<Zxid> {
        let version = version.into();
        let op = |path| Op::Check { path, version };
        Call::new(self, "check", path.into_path(), op, done).send(self)
    }

    /// Waits until the server that the client is connected to has everything that was committed
    /// when the request reached the leader. Answer: the transaction it has come to.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let at = client.sync().await?;
    /// println!("this server has come to {at}");
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let node = client.get("/app/config").await?;
    /// println!("{:?} of {} bytes", node.data, node.stat.data_length);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get(&self, path: impl IntoPath) -> Read<'_, Node> {
        let op = |path| Op::Get { path, watch: None };
        let call = Call::new(self, "get", path.into_path(), op, |reply, _, _| node(reply));
        Read { client: self, call }
    }

    /// Reads a node's statistics; `None` if it does not exist.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// if client.exists("/app").await?.is_none() {
    ///     client.create("/app", "").await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// for name in client.children("/app").await? {
    ///     println!("/app/{name}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn children(&self, path: impl IntoPath) -> Children<'_, Vec<String>> {
        Children::new(self, path.into_path())
    }

    /// Lists a node's children, optionally with their statistics and data: one page, or a stream.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let mut entries = client.list("/app").with_stat().with_data().stream();
    /// while let Some(entry) = entries.next().await {
    ///     let entry = entry?;
    ///     println!("{}: {:?}", entry.name, entry.data);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn list(&self, path: impl IntoPath) -> List<'_> {
        List::new(self, path.into_path(), false)
    }

    /// Lists everything below a node, parents before children, paths relative to the node: one
    /// page, or a stream.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let page = client.list_recursive("/app").page_size(100).await?;
    /// for entry in &page.entries {
    ///     println!("/app/{}", entry.name);
    /// }
    /// println!("{}", if page.more { "and so on" } else { "that is all" });
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let (acl, stat) = client.get_acl("/app").await?;
    /// println!("{acl:?}, changed {} times", stat.aversion);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_acl(&self, path: impl IntoPath) -> Read<'_, (Vec<Acl>, Stat)> {
        let op = |path| Op::GetAcl { path };
        let name = "get the ACL of";
        let call = Call::new(self, name, path.into_path(), op, |reply, _, _| {
            if let Reply::Acl { acl, stat } = reply { Some((acl, stat)) } else { None }
        });
        Read { client: self, call }
    }

    /// Lists the session's ephemeral nodes below a path, at any depth.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let mine = client.ephemerals("/").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn ephemerals(&self, below: impl IntoPath) -> Read<'_, Vec<ZPath>> {
        // The servers compare text: with the slash, /app is not above /apple.
        let op = |path: ZPath| Op::Ephemerals {
            prefix: format!("{}/", path.as_str().trim_end_matches('/')),
        };
        let name = "list the ephemeral nodes below";
        let call = Call::new(self, name, below.into_path(), op, |reply, _, _| {
            if let Reply::Paths(paths) = reply { Some(paths) } else { None }
        });
        Read { client: self, call }
    }

    /// Several reads of one moment.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let replies = client.multi_read().get("/app/a").get("/app/b").exists("/app/c").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn multi_read(&self) -> MultiRead<'_> {
        MultiRead::new(self)
    }
}

/// Watching.
impl Client {
    /// Sets a watch.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// use conclave_client::{WatchItem, WatchKind};
    /// let mut watch = client.watch("/app", WatchKind::PersistentRecursive).await?;
    /// while let Some(item) = watch.next().await {
    ///     match item? {
    ///         WatchItem::Event { zxid, path, kind, .. } => println!("{zxid}: {path} {kind:?}"),
    ///         WatchItem::Gap { resumed_at } => println!("read again; gap up to {resumed_at}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// loop {
    ///     let (config, mut change) = client.get_and_watch("/app/config").await?;
    ///     println!("the configuration is {:?}", config.data);
    ///     change.next().await.transpose()?;
    /// }
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let (stat, mut watch) = client.exists_and_watch("/app/go").await?;
    /// if stat.is_none() {
    ///     watch.next().await.transpose()?; // It was created.
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let (members, mut change) = client.children_and_watch("/app/members").await?;
    /// println!("{} members", members.len());
    /// change.next().await.transpose()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn children_and_watch(&self, path: impl IntoPath) -> Children<'_, (Vec<String>, Watch)> {
        Children::watching(self, path.into_path())
    }
}

/// Identities.
impl Client {
    /// Adds an identity to the session. It is presented again on every later connection, and its
    /// credentials are kept in memory for that. Schemes are `password`, for a user whom the servers'
    /// configuration knows, and ZooKeeper's `digest`; both take `user:password`.
    ///
    /// ```
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// client.authenticate("digest", "user:password").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn authenticate(&self, scheme: &str, credentials: impl Into<Bytes>) -> Pending<()> {
        let credentials = Credentials::from(credentials.into());
        let op = Op::Authenticate { scheme: scheme.to_owned(), credentials };
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
