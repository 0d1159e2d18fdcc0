//! A replica of a shard.
//!
//! ```text
//! SET key value              OK number, or why not
//! GET revision number key    VALUE value, or NONE: not older than that revision of the shards, and
//!                            that number of the shard's log
//! TAKE revision object        as SET, of keys that move here with that revision, as JSON
//! COUNT                      how many keys there are, and how many reads were answered
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use conclave_client::recipes::log::{Entry, Writer};
use conclave_client::recipes::ring::Ring;
use conclave_client::recipes::{Election, Error, Leadership};
use conclave_client::{Client, ErrorCode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::layout::{self, HandedOver, View, Views, election, moves, replicas};
use crate::router::Connections;
use crate::{SESSION_TIMEOUT, connect};

/// The operations that are appended together, and the keys that are handed over together.
const BATCH: usize = 100;
/// The requests that wait to be appended. More are refused.
const WAITING: usize = 1000;
/// The log is made shorter after so many operations.
const COMPACT: u64 = 500;
/// Before something is tried again that others have to be ready for.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves in a new session whenever one has ended.
pub(crate) async fn serve(shard: &str, address: &str, listener: TcpListener) -> Result<()> {
    let serve = async {
        loop {
            let client = connect().await?;
            let ended = tokio::select! {
                ended = serve_once(&client, shard, address, &listener) => ended,
                stopped = tokio::signal::ctrl_c() => {
                    stopped?;
                    client.close().await?;
                    return Ok(());
                }
            };
            match ended {
                Err(error) if error.is_final() => println!("{address}: {error}; once more"),
                ended => return ended.context("could not go on"),
            }
        }
    };
    tokio::task::LocalSet::new().run_until(serve).await
}

async fn serve_once(
    client: &Client,
    shard: &str,
    address: &str,
    listener: &TcpListener,
) -> Result<(), Error> {
    let views = Views::follow(client).await?;
    let (requests, mut queue) = mpsc::channel(WAITING);
    let replica = Rc::new(Replica {
        client: client.clone(),
        shard: shard.to_owned(),
        election: election(client, shard)?,
        view: views.subscribe(),
        values: RefCell::default(),
        applied: watch::Sender::new(0),
        reads: Cell::new(0),
        leads: Cell::new(false),
        requests,
    });
    let mut follower = layout::log(client, shard)?.follow().await?;
    let caught_up = follower.end().await?;
    let follow = async {
        loop {
            replica.apply(follower.next().await?);
        }
    };
    let take_part = async {
        // Nobody asks it before it knows what the others know.
        replica.has_applied(caught_up).await;
        let joining = replicas(client, shard)?.joining(address, "").wait(SESSION_TIMEOUT * 2);
        let _member = joining.create().await?;
        println!("{address} is a replica of {shard}");
        replica.stand(address, &views, &mut queue).await
    };
    tokio::select! {
        ended = follow => ended,
        ended = views.run() => ended,
        ended = take_part => ended,
        () = replica.accept(listener) => Ok(()),
    }
}

/// What is to be done in order with what is appended.
enum Request {
    Set(String, String),
    /// Takes keys that a move of that revision brings here.
    Take(u64, BTreeMap<String, String>),
    /// Nothing: it is answered when everything before it is appended.
    Mark,
}

/// The number of the last operation that is appended, or why there is none.
type Answer = Result<u64, String>;
type Asked = (Request, oneshot::Sender<Answer>);

struct Replica {
    client: Client,
    shard: String,
    election: Election,
    view: watch::Receiver<View>,
    values: RefCell<BTreeMap<String, String>>,
    /// The last operation that is applied.
    applied: watch::Sender<u64>,
    reads: Cell<u64>,
    /// Whether this is the primary, which alone takes requests.
    leads: Cell<bool>,
    requests: mpsc::Sender<Asked>,
}

// ---- The log.

impl Replica {
    fn apply(&self, entry: Entry) {
        let mut values = self.values.borrow_mut();
        let number = match entry {
            Entry::State { number, state } => {
                let lines = String::from_utf8_lossy(&state).into_owned();
                *values = lines.lines().map(key_and_rest).collect();
                number
            }
            Entry::Operation { number, operation } => {
                let operation = String::from_utf8_lossy(&operation);
                match operation.split_once(' ') {
                    Some(("SET", rest)) => {
                        let (key, value) = key_and_rest(rest);
                        values.insert(key, value);
                    }
                    Some(("KEEP", shards)) => {
                        let ring = Ring::of(shards.split(' '));
                        values.retain(|key, _| ring.owner(key) == Some(&self.shard));
                    }
                    Some(_) | None => println!("{operation:?} is not known here"),
                }
                number
            }
        };
        self.applied.send_replace(number);
    }

    async fn has_applied(&self, number: u64) {
        let mut applied = self.applied.subscribe();
        // The sender is here.
        drop(applied.wait_for(|&applied| applied >= number).await);
    }
}

fn key_and_rest(line: &str) -> (String, String) {
    let (key, value) = line.split_once(' ').unwrap_or((line, ""));
    (key.to_owned(), value.to_owned())
}

// ---- The primary.

impl Replica {
    /// Is the primary whenever it is elected.
    async fn stand(
        &self,
        address: &str,
        views: &Views,
        queue: &mut mpsc::Receiver<Asked>,
    ) -> Result<(), Error> {
        loop {
            let leadership = self.election.campaign(address.to_owned()).await?;
            println!("{address} leads {} with token {}", self.shard, leadership.token());
            // What was said before it was elected must be known, since it decides by that.
            views.sync().await?;
            self.leads.set(true);
            let outcome = tokio::select! {
                outcome = self.lead(&leadership, queue) => outcome,
                outcome = self.hand_over_all(&leadership) => outcome,
                loss = leadership.lost() => {
                    println!("{address} leads no longer: {loss}");
                    Ok(())
                }
            };
            self.leads.set(false);
            match outcome {
                Err(error) if error.is_final() => return Err(error),
                Err(error) => println!("{address} steps down: {error}"),
                Ok(()) => {}
            }
            // What is left was asked of this leadership, and must not be done in a later one.
            // Whoever asked is told, by the end of the channel, that nobody knows.
            while queue.try_recv().is_ok() {}
        }
    }

    /// Appends what is asked for, if it is this shard's.
    async fn lead(
        &self,
        leadership: &Leadership,
        queue: &mut mpsc::Receiver<Asked>,
    ) -> Result<(), Error> {
        let log = layout::log(&self.client, &self.shard)?;
        let mut writer = log.write(leadership.hold()).await?;
        let mut last = log.follow().await?.end().await?;
        self.has_applied(last).await;
        let (mut view, mut compacted) = (self.view.clone(), last);
        view.mark_changed();
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            tokio::select! {
                count = queue.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
                changed = view.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
            }
            let now = view.borrow_and_update().clone();
            let (mut operations, mut answers): (Vec<Bytes>, Vec<_>) = (Vec::new(), Vec::new());
            if let Some(keep) = self.keep(&now) {
                operations.push(keep.into());
            }
            for (request, answer) in batch {
                let writes = self.admit(&now, request);
                answers.push((answer, writes.map(|writes| operations.extend(writes))));
            }
            if !operations.is_empty() {
                last = writer.append(operations).await?;
            }
            for (answer, outcome) in answers {
                // Whoever asked may be gone.
                drop(answer.send(outcome.map(|()| last).map_err(ToOwned::to_owned)));
            }
            if *self.applied.borrow() >= compacted + COMPACT {
                compacted = self.compact(&mut writer).await?;
            }
        }
    }

    /// The operations of a request, or why it may not be done here and now.
    fn admit(&self, view: &View, request: Request) -> Result<Vec<Bytes>, &'static str> {
        let shard = Some(self.shard.as_str());
        let operation = |key: &String, value: &String| format!("SET {key} {value}").into();
        match request {
            Request::Mark => Ok(Vec::new()),
            Request::Set(key, _) if view.ring.owner(&key) != shard => Err("ELSEWHERE"),
            Request::Set(key, _) if view.moves(&key) => Err("MOVING"),
            Request::Set(key, value) => Ok(vec![operation(&key, &value)]),
            Request::Take(revision, keys) => {
                let next = view.next.as_ref().filter(|_| view.revision == revision);
                let comes = |key| next.is_some_and(|next| next.owner(key) == shard);
                if keys.keys().all(comes) {
                    Ok(keys.iter().map(|(key, value)| operation(key, value)).collect())
                } else {
                    Err("NOT NOW")
                }
            }
        }
    }

    /// What makes all replicas drop the keys that have moved away, if there are some.
    fn keep(&self, view: &View) -> Option<String> {
        let values = self.values.borrow();
        let is_foreign = |key: &String| view.ring.owner(key) != Some(&self.shard);
        let is_steady = view.next.is_none() && view.revision > 0;
        let drops = is_steady && values.keys().any(is_foreign);
        drops.then(|| format!("KEEP {}", view.shards.serving.join(" ")))
    }

    async fn compact(&self, writer: &mut Writer<'_>) -> Result<u64, Error> {
        let (number, state) = {
            let values = self.values.borrow();
            let lines = values.iter().map(|(key, value)| format!("{key} {value}\n"));
            (*self.applied.borrow(), lines.collect::<String>())
        };
        writer.compact(number, state).await?;
        Ok(number)
    }
}

// ---- Keys that move.

impl Replica {
    /// Hands over what moves away, whenever something does.
    async fn hand_over_all(&self, leadership: &Leadership) -> Result<(), Error> {
        let mut view = self.view.clone();
        loop {
            let now = view.borrow_and_update().clone();
            let is_source = now.shards.serving.contains(&self.shard);
            let hand_over = async {
                match &now.next {
                    Some(next) if is_source => self.hand_over(leadership, &now, next).await?,
                    Some(_) | None => {}
                }
                std::future::pending::<Result<(), Error>>().await
            };
            tokio::select! {
                failed = hand_over => return failed,
                changed = view.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    async fn hand_over(
        &self,
        leadership: &Leadership,
        view: &View,
        next: &Ring,
    ) -> Result<(), Error> {
        // After this, nothing is appended any more that moves.
        let last = loop {
            match self.ask(Request::Mark).await {
                Ok(last) => break last,
                Err(_) => sleep(PAUSE).await,
            }
        };
        self.has_applied(last).await;
        // And whoever leads after this one knows that, too.
        leadership.hold().confirm().await?;

        let (mut of, mut moving) = (0, BTreeMap::<String, Vec<(String, String)>>::new());
        for (key, value) in self.values.borrow().iter() {
            // Others may have come already that are this shard's next.
            if view.ring.owner(key) != Some(&self.shard) {
                continue;
            }
            of += 1;
            if let Some(to) = next.owner(key).filter(|to| *to != self.shard) {
                moving.entry(to.to_owned()).or_default().push((key.clone(), value.clone()));
            }
        }
        let mut to = BTreeMap::new();
        for (shard, keys) in moving {
            let last = self.send(view.revision, &shard, &keys).await?;
            to.insert(shard, (keys.len(), last));
        }
        let done = serde_json::to_vec(&HandedOver { of, to })
            .map_err(|error| Error::Config(error.to_string()))?;
        loop {
            let path = format!("{}/{}", moves(view.revision), self.shard);
            match self.client.create(path, done.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(ErrorCode::NodeExists) => return Ok(()),
                // Whoever reshards has not made its place yet.
                Err(error) if error.code() == Some(ErrorCode::NoNode) => sleep(PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends keys to another shard's primary until it has all of them.
    async fn send(
        &self,
        revision: u64,
        shard: &str,
        keys: &[(String, String)],
    ) -> Result<u64, Error> {
        let election = election(&self.client, shard)?;
        let (mut connections, mut newest) = (Connections::default(), 0);
        for some in keys.chunks(BATCH) {
            let some: BTreeMap<_, _> = some.iter().cloned().collect();
            let object = serde_json::to_string(&some);
            let object = object.map_err(|error| Error::Config(error.to_string()))?;
            let take = format!("TAKE {revision} {object}\n");
            // It may not be elected yet, or not know yet of the move: then again.
            newest = loop {
                if let Some(leader) = election.leader().await? {
                    let address = String::from_utf8_lossy(&leader.value).into_owned();
                    let answers = connections.ask(&address, &take).await.unwrap_or_default();
                    let number = answers.first().and_then(|answer| answer.strip_prefix("OK "));
                    if let Some(number) = number.and_then(|number| number.parse().ok()) {
                        break number;
                    }
                }
                sleep(PAUSE).await;
            };
        }
        Ok(newest)
    }

    /// Has something done in its turn.
    async fn ask(&self, request: Request) -> Result<u64, String> {
        if !self.leads.get() {
            return Err("NOT THE PRIMARY".into());
        }
        let (answer, outcome) = oneshot::channel();
        self.requests.try_send((request, answer)).map_err(|_| "BUSY".to_owned())?;
        let outcome = outcome.await;
        outcome.unwrap_or_else(|_| Err("UNKNOWN this replica is not the primary any more".into()))
    }
}

// ---- Those who ask.

impl Replica {
    async fn accept(self: &Rc<Self>, listener: &TcpListener) {
        let mut users = tokio::task::JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let replica = Rc::clone(self);
                    users.spawn_local(async move { replica.converse(socket).await });
                }
                Err(error) => {
                    println!("cannot accept: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn converse(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let (reading, mut writing) = socket.split();
        let mut lines = BufReader::new(reading).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = self.answer(&line).await;
            writing.write_all(format!("{answer}\n").as_bytes()).await?;
        }
        Ok(())
    }

    async fn answer(&self, line: &str) -> String {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.splitn(3, ' ').collect();
        match (verb, &words[..]) {
            ("SET", [key, ..]) if !key.is_empty() => {
                let (key, value) = key_and_rest(rest);
                self.write(Request::Set(key, value)).await
            }
            ("TAKE", [revision, ..]) => {
                let object = rest.split_once(' ').map_or("", |(_, object)| object);
                match (revision.parse(), serde_json::from_str(object)) {
                    (Ok(revision), Ok(keys)) => self.write(Request::Take(revision, keys)).await,
                    (_, _) => "ERROR say TAKE REVISION OBJECT".into(),
                }
            }
            ("GET", [revision, number, key]) => match (revision.parse(), number.parse()) {
                (Ok(revision), Ok(number)) => self.read(revision, number, key).await,
                (_, _) => "ERROR say GET REVISION NUMBER KEY".into(),
            },
            ("COUNT", _) => {
                format!("{} keys {} reads", self.values.borrow().len(), self.reads.get())
            }
            _ => "ERROR say SET, GET, TAKE or COUNT".into(),
        }
    }

    async fn write(&self, request: Request) -> String {
        match self.ask(request).await {
            Ok(number) => {
                self.has_applied(number).await;
                format!("OK {number}")
            }
            Err(why) => why,
        }
    }

    async fn read(&self, revision: u64, number: u64, key: &str) -> String {
        let mut view = self.view.clone();
        let (is_mine, ready) = match view.wait_for(|view| view.revision >= revision).await {
            Ok(view) => (
                view.ring.owner(key) == Some(&self.shard),
                view.shards.ready.get(&self.shard).copied().unwrap_or_default(),
            ),
            Err(_) => return "ERROR this replica is stopping".into(),
        };
        if !is_mine {
            return "ELSEWHERE".into();
        }
        self.has_applied(number.max(ready)).await;
        self.reads.set(self.reads.get() + 1);
        match self.values.borrow().get(key) {
            Some(value) => format!("VALUE {value}"),
            None => "NONE".into(),
        }
    }
}
