//! Several operations in one: all or nothing, or all of one moment.

use std::future::IntoFuture;
use std::sync::Arc;

use bytes::Bytes;
use conclave_proto::request::{Condition, Page, ReadLevel, Reply, Test};
use conclave_proto::{Acl, CreateMode, ErrorCode, Fault, Op, ZPath, Zxid};

use crate::chroot::IntoPath;
use crate::error::Operation;
use crate::request::{Call, Pending};
use crate::{Client, Error};

/// The outcome of a multi.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiOutcome {
    /// Whether the conditions held, so that the first branch was done and not the other one.
    pub held: bool,
    /// The answers of the branch that was done, one an operation.
    pub replies: Vec<Reply>,
    /// The transaction.
    pub zxid: Zxid,
}

/// One node that a client made, which stands for something that it holds as long as the node is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stake {
    /// The node.
    pub path: ZPath,
    /// The transaction that created it: nobody else's node of that name has it.
    pub zxid: Zxid,
}

/// Several writes in one transaction, not sent yet: all of them are done, or none.
///
/// Without conditions it is a plain list of writes. With [`when`](Multi::when) it is an if: what
/// follows is done if every condition holds, and what follows [`otherwise`](Multi::otherwise), if
/// anything, when one of them does not.
#[must_use = "a request does nothing before .await or .send()"]
pub struct Multi<'a> {
    client: &'a Client,
    error: Option<Error>,
    conditions: Vec<Condition>,
    then: Vec<Op>,
    otherwise: Option<Vec<Op>>,
    parts: Vec<Operation>,
}

impl<'a> Multi<'a> {
    pub(crate) fn new(client: &'a Client) -> Multi<'a> {
        Multi {
            client,
            error: None,
            conditions: Vec::new(),
            then: Vec::new(),
            otherwise: None,
            parts: Vec::new(),
        }
    }

    /// Only if this holds of that node.
    pub fn when(mut self, path: impl IntoPath, test: Test) -> Self {
        if let Some((_, path)) = self.path(path) {
            self.conditions.push(Condition { path, test });
        }
        self
    }

    /// What follows is done when a condition does not hold.
    pub fn otherwise(mut self) -> Self {
        self.otherwise.get_or_insert_default();
        self
    }

    /// Creates a persistent node. Answer: [`Reply::Created`].
    pub fn create(self, path: impl IntoPath, data: impl Into<Bytes>) -> Self {
        self.create_with(path, data, CreateMode::PERSISTENT, Acl::open())
    }

    /// Creates a node. Answer: [`Reply::Created`].
    pub fn create_with(
        self,
        path: impl IntoPath,
        data: impl Into<Bytes>,
        mode: CreateMode,
        acl: impl Into<Arc<[Acl]>>,
    ) -> Self {
        let (data, acl) = (Some(data.into()), acl.into());
        self.add("create", path, |path| Op::Create { path, data, acl, mode })
    }

    /// Replaces a node's data, if it has the version given. Answer: [`Reply::Stat`].
    pub fn set(
        self,
        path: impl IntoPath,
        data: impl Into<Bytes>,
        version: impl Into<Option<i32>>,
    ) -> Self {
        let (data, version) = (Some(data.into()), version.into());
        self.add("set", path, |path| Op::SetData { path, data, version })
    }

    /// Deletes a node, if it has the version given. Answer: [`Reply::Done`].
    pub fn delete(self, path: impl IntoPath, version: impl Into<Option<i32>>) -> Self {
        let version = version.into();
        self.add("delete", path, |path| Op::Delete { path, version })
    }

    /// Replaces a node's access control list, if it has the ACL version given. Answer:
    /// [`Reply::Stat`].
    pub fn set_acl(
        self,
        path: impl IntoPath,
        acl: impl Into<Arc<[Acl]>>,
        version: impl Into<Option<i32>>,
    ) -> Self {
        let (acl, version) = (acl.into(), version.into());
        self.add("set the ACL of", path, |path| Op::SetAcl { path, acl, version })
    }

    /// Fails the whole multi unless the node exists and has the version given. Answer:
    /// [`Reply::Done`].
    pub fn check(self, path: impl IntoPath, version: impl Into<Option<i32>>) -> Self {
        let version = version.into();
        self.add("check", path, |path| Op::Check { path, version })
    }

    /// Fails the whole multi, with [`ErrorCode::ConditionFailed`](crate::ErrorCode::ConditionFailed),
    /// unless what the node stands for is still held: it is the very node that the transaction
    /// `token` created, and its session, or its time to live, has not ended. Answer:
    /// [`Reply::Done`].
    pub fn guard(self, path: impl IntoPath, token: Zxid) -> Self {
        self.add("guard", path, |path| Op::Guard { path, token })
    }

    /// Sends it, to be done only if all of this is still held: each is [guarded](Multi::guard) in
    /// whichever branch is done. The answer is as without guards; `None` if one of them failed.
    ///
    /// They come first: who does not hold it any more is told so, and not what else is in the way.
    /// The stakes' paths are as `holder` sees them, whose root may be another one than that of the
    /// client of this multi.
    ///
    /// # Errors
    /// As the multi, with the places of its operations as without guards.
    ///
    /// ```
    /// use conclave_client::Stake;
    /// # async fn example(client: &conclave_client::Client) -> Result<(), conclave_client::Error> {
    /// let mine = client.create("/printer", "").ephemeral().await?;
    /// let mine = [Stake { path: mine.path, zxid: mine.stat.czxid }];
    /// let write = client.multi().create("/printed", "by me");
    /// match write.guarded_by(client, &mine).await? {
    ///     Some(_) => println!("it was mine when that was written"),
    ///     None => println!("it is not mine any more, and nothing was written"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn guarded_by(
        mut self,
        holder: &Client,
        stakes: &[Stake],
    ) -> Result<Option<MultiOutcome>, Error> {
        let mut guards = Vec::with_capacity(stakes.len());
        for stake in stakes {
            match holder.chroot.to_server(&stake.path) {
                Ok(path) => guards.push(Op::Guard { path, token: stake.zxid }),
                Err(error) => drop(self.error.get_or_insert(error)),
            }
        }
        let count = guards.len();
        // The guards have the same places in both branches, so that these can be named.
        let guard = |stake: &Stake| Operation::new("guard", Some(stake.path.clone()));
        let mut parts: Vec<Operation> = stakes.iter().map(guard).collect();
        // A multi whose conditions do not hold does nothing, but not without being guarded. Without
        // conditions the other branch is never done, and its guards would only take up room.
        if !self.conditions.is_empty() {
            self.otherwise.get_or_insert_default().splice(..0, guards.iter().cloned());
        }
        self.then.splice(..0, guards);
        parts.extend(self.nameable_parts());
        match self.send_as(parts).await {
            Ok(mut outcome) => {
                outcome.replies.drain(..count.min(outcome.replies.len()));
                Ok(Some(outcome))
            }
            Err(Error::Server { operation, code }) => {
                // The caller does not count the guards.
                match operation.index.map(|index| index.checked_sub(count)) {
                    Some(None) if code == ErrorCode::ConditionFailed => Ok(None),
                    own => {
                        let operation = Operation { index: own.flatten(), ..operation };
                        Err(Error::Server { operation, code })
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The operations, as far as a fault says which of them it is: it names the place but not the
    /// branch.
    fn nameable_parts(&mut self) -> Vec<Operation> {
        if self.otherwise.is_some() { Vec::new() } else { std::mem::take(&mut self.parts) }
    }

    /// Sends it.
    pub fn send(mut self) -> Pending<MultiOutcome> {
        let parts = self.nameable_parts();
        self.send_as(parts)
    }

    fn send_as(self, parts: Vec<Operation>) -> Pending<MultiOutcome> {
        let is_conditional = !self.conditions.is_empty();
        let op = Op::Multi {
            conditions: self.conditions,
            then: self.then,
            otherwise: self.otherwise.unwrap_or_default(),
        };
        let op = self.error.map_or(Ok(op), Err);
        let operation = Operation::new("multi", None);
        let mut call = Call::of(operation, op, |reply, zxid, _| {
            if let Reply::Multi { held, replies } = reply {
                Some(MultiOutcome { held, replies, zxid })
            } else {
                None
            }
        });
        (call.parts, call.is_conditional) = (parts, is_conditional);
        call.send(self.client)
    }

    fn add(
        mut self,
        name: &'static str,
        path: impl IntoPath,
        op: impl FnOnce(ZPath) -> Op,
    ) -> Self {
        if let Some((given, path)) = self.path(path) {
            self.parts.push(Operation::new(name, Some(given)));
            self.otherwise.as_mut().unwrap_or(&mut self.then).push(op(path));
        }
        self
    }

    /// The path as it was given, and the servers' one. The first error is kept.
    fn path(&mut self, path: impl IntoPath) -> Option<(ZPath, ZPath)> {
        let paths = path.into_path().and_then(|given| {
            let path = self.client.chroot.to_server(&given)?;
            Ok((given, path))
        });
        match paths {
            Ok(paths) => Some(paths),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }
}

impl IntoFuture for Multi<'_> {
    type Output = Result<MultiOutcome, Error>;
    type IntoFuture = Pending<MultiOutcome>;

    fn into_future(self) -> Self::IntoFuture {
        self.send()
    }
}

/// Several reads of one moment, not sent yet. Each has an answer, or a fault, of its own.
#[must_use = "a request does nothing before .await or .send()"]
pub struct MultiRead<'a> {
    client: &'a Client,
    error: Option<Error>,
    level: ReadLevel,
    ops: Vec<Op>,
}

impl<'a> MultiRead<'a> {
    pub(crate) fn new(client: &'a Client) -> MultiRead<'a> {
        MultiRead { client, error: None, level: ReadLevel::Local, ops: Vec::new() }
    }

    /// Reads a node. Answer: [`Reply::Data`].
    pub fn get(self, path: impl IntoPath) -> Self {
        self.add(path, |path| Op::Get { path, watch: None })
    }

    /// Reads a node's statistics. Answer: [`Reply::Stat`].
    pub fn exists(self, path: impl IntoPath) -> Self {
        self.add(path, |path| Op::Exists { path, watch: None })
    }

    /// Lists a node's children, one page of them. Answer: [`Reply::Children`].
    pub fn children(self, path: impl IntoPath, page: Page) -> Self {
        self.add(path, |path| Op::Children { path, watch: None, page })
    }

    /// Everything that was acknowledged to anybody before now is in the answers.
    pub fn linearizable(mut self) -> Self {
        self.level = ReadLevel::Linearizable;
        self
    }

    /// Everything up to this transaction is in the answers.
    pub fn at_least(mut self, zxid: Zxid) -> Self {
        self.level = ReadLevel::AtLeast(zxid);
        self
    }

    /// Sends it.
    pub fn send(self) -> Pending<Vec<Result<Reply, Fault>>> {
        let op = self.error.map_or(Ok(Op::MultiRead(self.ops)), Err);
        let operation = Operation::new("read several nodes", None);
        let mut call = Call::of(operation, op, |reply, _, _| {
            if let Reply::MultiRead(replies) = reply { Some(replies) } else { None }
        });
        call.level = self.level;
        call.send(self.client)
    }

    fn add(mut self, path: impl IntoPath, op: impl FnOnce(ZPath) -> Op) -> Self {
        match path.into_path().and_then(|path| self.client.chroot.to_server(&path)) {
            Ok(path) => self.ops.push(op(path)),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }
}

impl IntoFuture for MultiRead<'_> {
    type Output = Result<Vec<Result<Reply, Fault>>, Error>;
    type IntoFuture = Pending<Vec<Result<Reply, Fault>>>;

    fn into_future(self) -> Self::IntoFuture {
        self.send()
    }
}
