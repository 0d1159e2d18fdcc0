//! Requests that have not been made into futures yet, and the futures they become.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use conclave_proto::request::{ReadLevel, Reply};
use conclave_proto::{Acl, CreateMode, ErrorCode, Fault, Lifetime, Op, Stat, WatchId, ZPath, Zxid};
use tokio::sync::oneshot;

use crate::error::Operation;
use crate::queue::Submission;
use crate::session::{Failure, Outcome};
use crate::watch::{Inbox, Watch};
use crate::{Client, Error};

/// A node's data and statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its data; `None` is ZooKeeper's null, distinct from empty.
    pub data: Option<Bytes>,
    /// Its statistics.
    pub stat: Stat,
}

impl Node {
    /// Its data, empty if it has none.
    pub fn bytes(&self) -> &[u8] {
        self.data.as_deref().unwrap_or_default()
    }

    /// Its data as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(self.bytes())
    }
}

/// A node that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its path, with its number if it is sequential.
    pub path: ZPath,
    /// Its statistics.
    pub stat: Stat,
}

/// How a successful reply, the zxid it came with and the watch that was set become an answer;
/// `None` if the reply does not fit.
type Convert<T> = fn(Reply, Zxid, Option<Watch>) -> Option<T>;

/// Everything that is known of a request before it is sent.
pub(crate) struct Call<T> {
    pub(crate) operation: Operation,
    /// The servers' operation, or why there is none.
    pub(crate) op: Result<Op, Error>,
    pub(crate) level: ReadLevel,
    pub(crate) sets_watch: bool,
    /// The operations inside, if it is a multi.
    pub(crate) parts: Vec<Operation>,
    /// Whether it is a multi with conditions, one of which may be what the session may not read.
    pub(crate) is_conditional: bool,
    pub(crate) convert: Convert<T>,
    /// The answer if the node does not exist, where that is no error.
    pub(crate) missing: Option<fn(Option<Watch>) -> Option<T>>,
}

impl<T> Call<T> {
    /// A call without options, whose path the caller gave and whose operation is yet to be made
    /// from the servers' path.
    pub(crate) fn new(
        client: &Client,
        name: &'static str,
        path: Result<ZPath, Error>,
        op: impl FnOnce(ZPath) -> Op,
        convert: Convert<T>,
    ) -> Call<T> {
        let operation = Operation::new(name, path.as_ref().ok().cloned());
        let op = path.and_then(|path| client.chroot.to_server(&path)).map(op);
        Call::of(operation, op, convert)
    }

    pub(crate) fn of(operation: Operation, op: Result<Op, Error>, convert: Convert<T>) -> Call<T> {
        Call {
            operation,
            op,
            level: ReadLevel::Local,
            sets_watch: false,
            parts: Vec::new(),
            is_conditional: false,
            convert,
            missing: None,
        }
    }

    /// Gives the request its place in the order.
    pub(crate) fn send(mut self, client: &Client) -> Pending<T> {
        let watch = if self.sets_watch { self.new_watch(client) } else { None };
        let state = match self.op {
            Err(error) => State::Failed(error),
            Ok(op) => {
                let (completion, outcome) = oneshot::channel();
                let inbox = watch.as_ref().map(|watch| Arc::clone(&watch.inbox));
                let submission = Submission { op, level: self.level, watch: inbox, completion };
                match client.handle.shared.queue.submit(submission) {
                    Ok(()) => State::Waiting(outcome),
                    Err(failure) => {
                        finish_unsent(watch.as_ref());
                        State::Refused(failure)
                    }
                }
            }
        };
        Pending {
            state,
            watch,
            chroot: client.chroot.clone(),
            operation_timeout: client.handle.shared.operation_timeout,
            operation: self.operation,
            parts: self.parts,
            is_conditional: self.is_conditional,
            convert: self.convert,
            missing: self.missing,
        }
    }

    fn new_watch(&mut self, client: &Client) -> Option<Watch> {
        let (Ok(op), Some(path)) = (&mut self.op, &self.operation.path) else { return None };
        let id = client.handle.shared.new_watch();
        set_watch_id(op, id);
        Some(Watch {
            id,
            path: path.clone(),
            inbox: Arc::new(Inbox::new()),
            chroot: client.chroot.clone(),
            shared: Arc::clone(&client.handle.shared),
        })
    }
}

fn set_watch_id(op: &mut Op, new: WatchId) {
    if let Op::Get { watch, .. } | Op::Exists { watch, .. } | Op::Children { watch, .. } = op {
        *watch = Some(new);
    } else if let Op::Watch { id, .. } = op {
        *id = new;
    }
}

/// A watch that never reached the driver need not be removed from it.
fn finish_unsent(watch: Option<&Watch>) {
    if let Some(watch) = watch {
        watch.inbox.finish(None);
    }
}

/// The future of a request that has its place in the order already.
///
/// Dropping it does not take the request back.
#[must_use = "without awaiting it nobody learns whether the request succeeded"]
pub struct Pending<T> {
    state: State,
    watch: Option<Watch>,
    chroot: crate::chroot::Chroot,
    operation_timeout: Duration,
    operation: Operation,
    parts: Vec<Operation>,
    is_conditional: bool,
    convert: Convert<T>,
    missing: Option<fn(Option<Watch>) -> Option<T>>,
}

enum State {
    /// The request was not valid.
    Failed(Error),
    /// It was not accepted.
    Refused(Failure),
    /// It is on its way.
    Waiting(oneshot::Receiver<Outcome>),
    /// The outcome was given out.
    Finished,
}

impl<T> Pending<T> {
    fn resolve(&mut self, outcome: Outcome) -> Result<T, Error> {
        let watch = self.watch.take();
        match outcome {
            Ok(answer) => {
                let reply = self.chroot.reply_to_caller(answer.reply);
                (self.convert)(reply, answer.zxid, watch)
                    .ok_or_else(|| Error::UnexpectedReply { operation: self.operation.clone() })
            }
            Err(Failure::Fault(fault)) if fault.code == ErrorCode::NoNode => {
                let missing = self.missing.and_then(|missing| missing(watch));
                missing.ok_or_else(|| self.error(fault.into()))
            }
            Err(failure) => Err(self.error(failure)),
        }
    }

    /// For a multi, names the operation inside that failed.
    fn error(&self, failure: Failure) -> Error {
        let mut operation = self.operation.clone();
        if let Failure::Fault(fault) = &failure
            && is_of_one_part(fault)
            && !(self.is_conditional && fault.code == ErrorCode::NoAuth)
        {
            let index = usize::try_from(fault.index).unwrap_or(usize::MAX);
            if let Some(part) = self.parts.get(index) {
                operation = Operation { index: Some(index), ..part.clone() };
            }
        }
        failure.into_error(operation, self.operation_timeout)
    }
}

/// Whether a fault in a multi is of the operation at its index. One of the whole multi has the index
/// 0, so that there only the codes say it that none but a single operation can have.
fn is_of_one_part(fault: &Fault) -> bool {
    let is_of_one = matches!(
        fault.code,
        ErrorCode::NoNode
            | ErrorCode::NodeExists
            | ErrorCode::BadVersion
            | ErrorCode::NotEmpty
            | ErrorCode::NoChildrenForEphemerals
            | ErrorCode::ConditionFailed
            | ErrorCode::InvalidAcl
            | ErrorCode::NoAuth
            | ErrorCode::QuotaExceeded
            | ErrorCode::SequenceOverflow
            | ErrorCode::EphemeralOnLocalSession
    );
    fault.index > 0 || is_of_one
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.state {
            State::Waiting(outcome) => {
                // The driver is gone without a word only if its runtime was shut down.
                ready!(Pin::new(outcome).poll(cx))
                    .unwrap_or(Err(Failure::Closed { confirmed: false }))
            }
            State::Failed(_) | State::Refused(_) | State::Finished => {
                match std::mem::replace(&mut self.state, State::Finished) {
                    State::Failed(error) => return Poll::Ready(Err(error)),
                    State::Refused(failure) => Err(failure),
                    State::Waiting(_) | State::Finished => return Poll::Pending,
                }
            }
        };
        self.state = State::Finished;
        Poll::Ready(self.resolve(outcome))
    }
}

macro_rules! into_future {
    ($($request:ident<$($t:ident)?> => $answer:ty;)*) => {$(
        impl<'a, $($t)?> IntoFuture for $request<'a, $($t)?> {
            type Output = Result<$answer, Error>;
            type IntoFuture = Pending<$answer>;

            fn into_future(self) -> Pending<$answer> {
                self.send()
            }
        }
    )*};
}

into_future! {
    Create<> => Created;
    Write<T> => T;
    Read<T> => T;
    SetWatch<> => Watch;
}

/// A create that is not sent yet; see [`Client::create`].
#[must_use = "a request does nothing before .await or .send()"]
pub struct Create<'a> {
    pub(crate) client: &'a Client,
    pub(crate) call: Call<Created>,
}

impl Create<'_> {
    /// How long the node lives and whether it is numbered; persistent and not unless said.
    pub fn mode(mut self, new: CreateMode) -> Self {
        if let Ok(Op::Create { mode, .. }) = &mut self.call.op {
            *mode = new;
        }
        self
    }

    /// The node is deleted when the session ends. It can have no children.
    pub fn ephemeral(self) -> Self {
        self.lifetime(Lifetime::Ephemeral)
    }

    /// The node is deleted when its last child is.
    pub fn container(self) -> Self {
        self.lifetime(Lifetime::Container)
    }

    /// The node is deleted when it has no children and its data has not changed for so long.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.lifetime(Lifetime::Ttl(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The parent's counter is appended to the node's name: names of later nodes are greater.
    pub fn sequential(mut self) -> Self {
        if let Ok(Op::Create { mode, .. }) = &mut self.call.op {
            mode.sequential = true;
        }
        self
    }

    /// The node has no data at all (ZooKeeper's null), which is distinct from empty data.
    pub fn without_data(mut self) -> Self {
        if let Ok(Op::Create { data, .. }) = &mut self.call.op {
            *data = None;
        }
        self
    }

    /// Who may do what with the node; everybody everything unless said.
    pub fn acl(mut self, new: impl Into<Arc<[Acl]>>) -> Self {
        if let Ok(Op::Create { acl, .. }) = &mut self.call.op {
            *acl = new.into();
        }
        self
    }

    /// Sends it.
    pub fn send(self) -> Pending<Created> {
        self.call.send(self.client)
    }

    fn lifetime(mut self, lifetime: Lifetime) -> Self {
        if let Ok(Op::Create { mode, .. }) = &mut self.call.op {
            mode.lifetime = lifetime;
        }
        self
    }
}

/// A write of a node that exists, not sent yet.
#[must_use = "a request does nothing before .await or .send()"]
pub struct Write<'a, T> {
    pub(crate) client: &'a Client,
    pub(crate) call: Call<T>,
}

impl<T> Write<'_, T> {
    /// Fail with [`ErrorCode::BadVersion`] unless the node has this version (for an ACL: this ACL
    /// version). Without it any will do.
    pub fn version(mut self, expected: i32) -> Self {
        if let Ok(
            Op::Delete { version, .. } | Op::SetData { version, .. } | Op::SetAcl { version, .. },
        ) = &mut self.call.op
        {
            *version = Some(expected);
        }
        self
    }

    /// Sends it.
    pub fn send(self) -> Pending<T> {
        self.call.send(self.client)
    }
}

/// A read that is not sent yet.
///
/// Unless said otherwise it shows what the server that the client is connected to knows: never
/// older than what this session has seen or done before, but another client's write may have been
/// acknowledged already and not be in it.
#[must_use = "a request does nothing before .await or .send()"]
pub struct Read<'a, T> {
    pub(crate) client: &'a Client,
    pub(crate) call: Call<T>,
}

impl<T> Read<'_, T> {
    /// Everything that was acknowledged to anybody before now is in the answer. Costs a round trip
    /// between the servers.
    pub fn linearizable(self) -> Self {
        self.level(ReadLevel::Linearizable)
    }

    /// Everything up to this transaction is in the answer; the server waits for it if it must, and
    /// what is asked after it waits too. For a transaction of another history, from a cluster that
    /// was restored from a backup for example, it fails with [`Error::Timeout`].
    pub fn at_least(self, zxid: Zxid) -> Self {
        self.level(ReadLevel::AtLeast(zxid))
    }

    /// How fresh the answer must be.
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.call.level = level;
        self
    }

    /// Sends it.
    pub fn send(self) -> Pending<T> {
        self.call.send(self.client)
    }
}

/// A watch that is not set yet; see [`Client::watch`].
#[must_use = "a request does nothing before .await or .send()"]
pub struct SetWatch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) call: Call<Watch>,
}

impl SetWatch<'_> {
    /// Events carry the node's new data.
    pub fn with_value(mut self) -> Self {
        if let Ok(Op::Watch { with_value, .. }) = &mut self.call.op {
            *with_value = true;
        }
        self
    }

    /// Report everything that happened after this transaction, and not only what happens from now
    /// on. If the servers do not remember it any more, a [`WatchItem::Gap`](crate::WatchItem::Gap)
    /// says so.
    pub fn since(mut self, zxid: Zxid) -> Self {
        if let Ok(Op::Watch { since, .. }) = &mut self.call.op {
            *since = Some(zxid);
        }
        self
    }

    /// Sends it.
    pub fn send(self) -> Pending<Watch> {
        self.call.send(self.client)
    }
}
