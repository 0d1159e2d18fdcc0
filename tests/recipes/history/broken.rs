//! Locks as they should not be, each with a fault that real ones have had.

use std::time::Duration;

use conclave_client::recipes::{Error, Hold, Mutex, Token};
use conclave_client::{Client, CreateMode, ErrorCode, ZPath};
use tokio::time::{sleep, timeout};

/// What is wrong with a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// It does not look who came before.
    IgnoresPredecessor,
    /// It takes the lock from one who has not shown up for long enough to seem dead.
    Impatient,
    /// Everybody's token is the same.
    TokenStays,
    /// The token is the number of the session, which says nothing about the order.
    TokenOfSession,
    /// Whoever releases it forgets its node.
    LeavesNode,
    /// Whoever waits watches nothing.
    SleepsOn,
}

impl Fault {
    pub(super) const ALL: [Fault; 6] = [
        Fault::IgnoresPredecessor,
        Fault::Impatient,
        Fault::TokenStays,
        Fault::TokenOfSession,
        Fault::LeavesNode,
        Fault::SleepsOn,
    ];

    /// What the checker may say of it.
    pub(super) fn signs(self) -> &'static [&'static str] {
        match self {
            Fault::IgnoresPredecessor | Fault::Impatient => &["too many at once", "token"],
            Fault::TokenStays | Fault::TokenOfSession => &["token"],
            Fault::LeavesNode => &["lost wake-up", "orphan node"],
            Fault::SleepsOn => &["lost wake-up"],
        }
    }
}

/// A lock that is held, or not.
pub(super) enum Broken {
    /// It is right but for its token, or for its end.
    Mutex {
        fault: Fault,
        hold: Hold,
        token: Token,
    },
    Node {
        client: Client,
        path: ZPath,
        token: Token,
    },
}

impl Broken {
    pub(super) async fn acquire(
        fault: Fault,
        client: &Client,
        dir: &str,
        patience: Duration,
    ) -> Result<Broken, Error> {
        if matches!(fault, Fault::TokenStays | Fault::TokenOfSession | Fault::LeavesNode) {
            let hold = Mutex::new(client, dir)?.lock_within(patience).await?;
            let token = match fault {
                Fault::TokenStays => Token::new(1),
                Fault::TokenOfSession => Token::new(client.session().0),
                Fault::IgnoresPredecessor
                | Fault::Impatient
                | Fault::LeavesNode
                | Fault::SleepsOn => hold.token(),
            };
            return Ok(Broken::Mutex { fault, hold, token });
        }
        Broken::stand(fault, client, dir, patience).await
    }

    /// Makes a node and waits as long as the fault has it.
    async fn stand(
        fault: Fault,
        client: &Client,
        dir: &str,
        patience: Duration,
    ) -> Result<Broken, Error> {
        for path in ["/recipes", dir] {
            match client.create(path, "").await {
                Err(error) if error.code() != Some(ErrorCode::NodeExists) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        let node = client.create(format!("{dir}/lock-"), "");
        let node = node.mode(CreateMode::EPHEMERAL_SEQUENTIAL).await?;
        let token = node.stat.czxid.into();
        let broken = Broken::Node { client: client.clone(), path: node.path.clone(), token };
        let is_first = async || {
            let first = client.children(dir).await?.into_iter().min();
            Ok::<_, Error>(first.as_deref() == Some(node.path.name()))
        };
        match fault {
            Fault::Impatient => {
                let first = async {
                    while !is_first().await? {
                        sleep(Duration::from_millis(1)).await;
                    }
                    Ok::<_, Error>(())
                };
                drop(timeout(Duration::from_millis(2), first).await);
            }
            Fault::SleepsOn if !is_first().await? => {
                sleep(patience).await;
                broken.release().await?;
                return Err(Error::Deadline { path: node.path });
            }
            Fault::IgnoresPredecessor
            | Fault::TokenStays
            | Fault::TokenOfSession
            | Fault::LeavesNode
            | Fault::SleepsOn => {}
        }
        Ok(broken)
    }

    pub(super) fn token(&self) -> Token {
        match self {
            Broken::Mutex { token, .. } | Broken::Node { token, .. } => *token,
        }
    }

    pub(super) fn is_held(&self) -> bool {
        match self {
            Broken::Mutex { hold, .. } => hold.is_held(),
            Broken::Node { .. } => true,
        }
    }

    pub(super) async fn release(self) -> Result<(), Error> {
        match self {
            Broken::Mutex { fault: Fault::LeavesNode, hold, .. } => {
                std::mem::forget(hold);
                Ok(())
            }
            Broken::Mutex { hold, .. } => hold.release().await,
            Broken::Node { client, path, .. } => {
                client.delete(path).await?;
                Ok(())
            }
        }
    }
}
