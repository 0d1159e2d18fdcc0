//! What a user of the store does: finds the shard of a key, its primary for a write, any of its
//! replicas for a read.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use conclave_client::Client;
use conclave_client::recipes::members::Members;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::layout::{Views, election, replicas};

/// How long anything may take, with a primary that dies in the middle of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one replica may take.
const ANSWER: Duration = Duration::from_secs(2);
/// Before it is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Connections that are kept open, by address.
#[derive(Default)]
pub(crate) struct Connections(BTreeMap<String, BufReader<TcpStream>>);

impl Connections {
    /// Sends requests, one a line, and reads as many answers.
    pub(crate) async fn ask(&mut self, address: &str, requests: &str) -> Result<Vec<String>> {
        // One on which something failed is not used again.
        let mut connection = match self.0.remove(address) {
            Some(connection) => connection,
            None => BufReader::new(TcpStream::connect(address).await?),
        };
        let count = requests.lines().count();
        let ask = async {
            connection.write_all(requests.as_bytes()).await?;
            let mut answers = Vec::with_capacity(count);
            while answers.len() < count {
                let mut answer = String::new();
                if connection.read_line(&mut answer).await? == 0 {
                    bail!("{address} hung up");
                }
                answers.push(answer.trim_end().to_owned());
            }
            Ok(answers)
        };
        let answers = timeout(ANSWER, ask).await.context("no answer in time")??;
        self.0.insert(address.to_owned(), connection);
        Ok(answers)
    }
}

pub(crate) struct Router {
    client: Client,
    views: Views,
    connections: Connections,
    /// Who is there of each shard, as far as it was asked for.
    replicas: BTreeMap<String, Members>,
    primaries: BTreeMap<String, String>,
    /// How far a replica must be so that this one sees what it has written itself.
    written: BTreeMap<String, u64>,
    reads: usize,
}

impl Router {
    pub(crate) async fn new(client: &Client) -> Result<Router> {
        Ok(Router {
            client: client.clone(),
            views: Views::follow(client).await?,
            connections: Connections::default(),
            replicas: BTreeMap::new(),
            primaries: BTreeMap::new(),
            written: BTreeMap::new(),
            reads: 0,
        })
    }

    /// Writes until it is acknowledged.
    pub(crate) async fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shard = self.shard(key)?;
            match self.try_set(&shard, key, value).await {
                Ok(number) => {
                    self.written.insert(shard, number);
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("writing {key} to {shard}")));
                }
                Err(_) => self.look_again(&shard).await?,
            }
        }
    }

    async fn try_set(&mut self, shard: &str, key: &str, value: &str) -> Result<u64> {
        let primary = self.primary(shard).await?;
        let answers = self.connections.ask(&primary, &format!("SET {key} {value}\n")).await?;
        let answer = answers.first().map(String::as_str).unwrap_or_default();
        let number = answer.strip_prefix("OK ").with_context(|| answer.to_owned())?;
        Ok(number.parse()?)
    }

    /// Reads from one replica after the other, each in its turn.
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shard = self.shard(key)?;
            match self.try_get(&shard, key).await {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("reading {key} from {shard}")));
                }
                Err(_) => self.look_again(&shard).await?,
            }
        }
    }

    async fn try_get(&mut self, shard: &str, key: &str) -> Result<Option<String>> {
        let replicas = self.replicas(shard).await?;
        self.reads += 1;
        let replica = replicas.get(self.reads % replicas.len().max(1));
        let replica = replica.with_context(|| format!("{shard} has no replicas"))?;
        let (revision, written) = (self.views.now().revision, self.written.get(shard));
        let request = format!("GET {revision} {} {key}\n", written.copied().unwrap_or_default());
        let answers = self.connections.ask(replica, &request).await?;
        match answers.first().map(String::as_str) {
            Some("NONE") => Ok(None),
            Some(answer) => match answer.strip_prefix("VALUE ") {
                Some(value) => Ok(Some(value.to_owned())),
                None => bail!("{answer}"),
            },
            None => bail!("no answer"),
        }
    }

    fn shard(&self, key: &str) -> Result<String> {
        let view = self.views.now();
        let shard = view.ring.owner(key).context("there are no shards: say reshard first")?;
        Ok(shard.to_owned())
    }

    async fn primary(&mut self, shard: &str) -> Result<String> {
        if let Some(primary) = self.primaries.get(shard) {
            return Ok(primary.clone());
        }
        let leader = election(&self.client, shard)?.leader().await?;
        let leader = leader.with_context(|| format!("nobody leads {shard}"))?;
        let primary = String::from_utf8_lossy(&leader.value).into_owned();
        self.primaries.insert(shard.to_owned(), primary.clone());
        Ok(primary)
    }

    async fn replicas(&mut self, shard: &str) -> Result<Vec<String>> {
        if !self.replicas.contains_key(shard) {
            let members = replicas(&self.client, shard)?.members().await?;
            self.replicas.insert(shard.to_owned(), members);
        }
        Ok(self.replicas[shard].names()?)
    }

    /// After something failed: there may be another primary, or other shards.
    async fn look_again(&mut self, shard: &str) -> Result<()> {
        self.primaries.remove(shard);
        self.views.sync().await?;
        sleep(PAUSE).await;
        Ok(())
    }

    /// Says who is there and what they have.
    pub(crate) async fn print(&mut self) -> Result<()> {
        let view = self.views.now();
        if let Some(next) = &view.shards.next {
            println!("keys are moving to {}", next.join(", "));
        }
        for shard in &view.shards.serving {
            let leader = election(&self.client, shard)?.leader().await?;
            let leader = leader.map(|leader| leader.value).unwrap_or_default();
            for replica in self.replicas(shard).await? {
                let role = if replica.as_bytes() == leader { "primary" } else { "standby" };
                let counts = match self.connections.ask(&replica, "COUNT\n").await {
                    Ok(answers) => answers.join(" "),
                    Err(error) => error.to_string(),
                };
                println!("{shard} {replica} {role} {counts}");
            }
        }
        Ok(())
    }
}
