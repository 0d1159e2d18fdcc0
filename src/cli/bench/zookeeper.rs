//! The same load over ZooKeeper's wire, so that any server that speaks it can be compared.
//!
//! Just enough of the protocol to make load with little CPU: requests are encoded by hand, replies
//! are checked for errors and otherwise skipped.

use std::collections::VecDeque;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::crew::{Rounds, Shift};
use super::report::Tally;
use super::work::{
    CHILDREN, Kind, MULTI, NODES, ROOT, Step, Steps, created_path, listed_path, node_path,
    watched_path,
};
use super::{Load, join_all};

/// Requests in flight while nodes are prepared or removed.
const BULK: usize = 256;
/// The room made for what comes next.
const READ_BYTES: usize = 16 << 10;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const GET_CHILDREN: i32 = 8;
const MULTI_OP: i32 = 14;
const CLOSE_SESSION: i32 = -11;
const NODE_EXISTS: i32 = -110;
const NO_NODE: i32 = -101;

/// Makes the nodes that the load works on.
pub(super) async fn prepare(load: &Load) -> anyhow::Result<()> {
    let mut connection = Connection::open(load.server_of(0), (load.run, 0)).await?;
    let parents = [ROOT.to_owned(), format!("{ROOT}/nodes"), format!("{ROOT}/created")];
    let nodes = (0..NODES).map(node_path);
    let children = (0..CHILDREN).map(|n| format!("{}/{n}", listed_path()));
    let paths = parents.into_iter().chain([listed_path(), watched_path()]).chain(nodes);
    connection
        .bulk(paths.chain(children), |this, path| this.send_create(&path, &load.value))
        .await?;
    connection.close().await
}

/// What one thread does: opens its clients' sessions, runs their load when all threads are ready,
/// and closes them.
pub(super) async fn work(load: &Load, shift: Shift) -> anyhow::Result<Tally> {
    let numbers = shift.clients.clone();
    let connections = open(load, numbers.clone()).await?;
    let (until, rounds) = shift.begin().await?;
    match load.kind {
        Kind::Connect => {
            let sessions = numbers.map(|client| open_and_close(load.clone(), client, until));
            join_all(sessions.map(tokio::spawn).collect()).await
        }
        Kind::Watch => fan_out(load, connections, numbers.start == 0, &rounds, until).await,
        Kind::Failover
        | Kind::Freeze
        | Kind::HandOver
        | Kind::Locks
        | Kind::Succession
        | Kind::Resignation
        | Kind::Queue
        | Kind::Cache => {
            bail!("{} is measured on Conclave alone", load.kind.name())
        }
        Kind::Set | Kind::Create | Kind::Get | Kind::Mixed | Kind::Multi | Kind::Children => {
            let clients = connections.into_iter().zip(numbers);
            let loads = clients.map(|(connection, n)| steady(load.clone(), connection, n, until));
            join_all(loads.map(tokio::spawn).collect()).await
        }
    }
}

async fn open(load: &Load, numbers: Range<u64>) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    if load.kind != Kind::Connect {
        for client in numbers {
            let names = (load.run, client);
            connections.push(Connection::open(load.server_of(client), names).await?);
        }
    }
    Ok(connections)
}

/// Removes every node that the load made, and any that one before it has left.
pub(super) async fn clean_up(load: &Load, tally: &Tally) -> anyhow::Result<()> {
    let mut connection = Connection::open(load.server_of(0), (load.run, 0)).await?;
    // There may be more of them than one answer has room for.
    let created = tally.creations().iter().flat_map(|&(client, nodes)| {
        (0..nodes).map(move |number| created_path(load.run, client, number))
    });
    connection.bulk(created, |this, path| this.send_delete(&path)).await?;
    let parents = [format!("{ROOT}/nodes"), format!("{ROOT}/created"), listed_path()];
    for parent in &parents {
        let names = connection.children(parent).await?;
        let paths = names.into_iter().map(|name| format!("{parent}/{name}"));
        connection.bulk(paths, |this, path| this.send_delete(&path)).await?;
    }
    let rest = parents.into_iter().chain([watched_path(), ROOT.to_owned()]);
    connection.bulk(rest, |this, path| this.send_delete(&path)).await?;
    connection.close().await
}

/// One client that keeps `depth` requests in flight.
async fn steady(
    load: Load,
    mut connection: Connection,
    client: u64,
    until: Instant,
) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    let mut steps = Steps::new(load.kind, client);
    loop {
        if Instant::now() < until {
            while connection.in_flight() < load.depth {
                connection.send(steps.next(), &load.value);
            }
            connection.flush().await?;
        } else if connection.in_flight() == 0 {
            connection.close().await?;
            if load.kind == Kind::Create {
                tally.created(client, steps.count());
            }
            return Ok(tally);
        }
        connection.receive(|asked, succeeded| tally.record(asked.elapsed(), succeeded)).await?;
    }
}

async fn open_and_close(load: Load, client: u64, until: Instant) -> anyhow::Result<Tally> {
    let mut tally = Tally::new();
    while Instant::now() < until {
        let started = Instant::now();
        let connection = Connection::open(load.server_of(client), (load.run, client)).await;
        let closed = match connection {
            Ok(connection) => connection.close().await,
            Err(error) => Err(error),
        };
        tally.record(started.elapsed(), closed.is_ok());
    }
    Ok(tally)
}

/// One write wakes every client, again and again; what counts is each client's event.
async fn fan_out(
    load: &Load,
    mut connections: Vec<Connection>,
    writes: bool,
    rounds: &Rounds,
    until: Instant,
) -> anyhow::Result<Tally> {
    let names = (load.run, load.clients);
    let mut writer =
        if writes { Some(Connection::open(load.server_of(0), names).await?) } else { None };
    let mut sum = Tally::new();
    for round in 0.. {
        if writer.is_some() && Instant::now() >= until {
            rounds.end(round);
        }
        for connection in &mut connections {
            connection.send_watch(&watched_path());
            connection.flush().await?;
        }
        for connection in &mut connections {
            connection.receive(|_, _| {}).await?;
        }
        if !rounds.begin(round).await {
            break;
        }
        let begun = Instant::now();
        let waits = connections.into_iter().map(|mut connection| {
            tokio::spawn(async move {
                connection.wait_for_event().await?;
                anyhow::Ok((connection, begun.elapsed()))
            })
        });
        let waits: Vec<_> = waits.collect();
        if let Some(writer) = &mut writer {
            writer.send_set(&watched_path(), &load.value);
            writer.flush().await?;
            writer.receive(|_, _| {}).await?;
        }
        connections = Vec::new();
        for wait in waits {
            let (connection, latency) = wait.await??;
            sum.record(latency, true);
            connections.push(connection);
        }
    }
    for connection in connections.into_iter().chain(writer) {
        connection.close().await?;
    }
    Ok(sum)
}

/// A session on a ZooKeeper server.
pub(super) struct Connection {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    xid: i32,
    /// When each request in flight was sent, oldest first.
    in_flight: VecDeque<Instant>,
    /// Numbers the nodes that this connection creates.
    names: (u64, u64),
}

/// A packet from the server.
struct Packet {
    xid: i32,
    error: i32,
}

impl Connection {
    /// Opens a session. `names` makes the names of the nodes it creates unique.
    pub(super) async fn open(address: &str, names: (u64, u64)) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let mut connection = Connection {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            xid: 0,
            in_flight: VecDeque::new(),
            names,
        };
        connection.handshake(address).await?;
        Ok(connection)
    }

    async fn handshake(&mut self, address: &str) -> anyhow::Result<()> {
        self.packet(|out| {
            out.put_i32(0);
            out.put_i64(0);
            out.put_i32(30_000);
            out.put_i64(0);
            put_buffer(out, &[0; 16]);
            out.put_u8(0);
        });
        self.flush().await?;
        let mut reply = self.frame().await?;
        ensure!(reply.len() >= 16, "{address} answered the handshake with {} bytes", reply.len());
        reply.advance(4);
        ensure!(reply.get_i32() > 0, "{address} refused the session");
        Ok(())
    }

    /// Asks for one operation; it leaves with [`Connection::flush`].
    fn send(&mut self, step: Step, value: &[u8]) {
        self.in_flight.push_back(Instant::now());
        let (run, client) = self.names;
        match step {
            Step::Set(n) => self.request(SET_DATA, |out| put_set(out, &node_path(n), value)),
            Step::Create(n) => {
                let path = created_path(run, client, n);
                self.request(CREATE, |out| put_create(out, &path, value));
            }
            Step::Get(n) => self.request(GET_DATA, |out| {
                put_buffer(out, node_path(n).as_bytes());
                out.put_u8(0);
            }),
            Step::Multi(first) => self.request(MULTI_OP, |out| {
                for n in first..first + MULTI {
                    put_multi_header(out, SET_DATA, false);
                    put_set(out, &node_path(n), value);
                }
                put_multi_header(out, -1, true);
            }),
            Step::Children => self.request(GET_CHILDREN, |out| {
                put_buffer(out, listed_path().as_bytes());
                out.put_u8(0);
            }),
        }
    }

    /// Asks that a node be written.
    fn send_set(&mut self, path: &str, value: &[u8]) {
        self.in_flight.push_back(Instant::now());
        self.request(SET_DATA, |out| put_set(out, path, value));
    }

    /// Sends a request for each path, many at a time, and waits for all the answers.
    async fn bulk(
        &mut self,
        paths: impl Iterator<Item = String>,
        send: impl Fn(&mut Connection, String),
    ) -> anyhow::Result<()> {
        for path in paths {
            send(self, path);
            if self.in_flight() >= BULK {
                self.drain().await?;
            }
        }
        self.drain().await
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        self.flush().await?;
        let mut failed = 0;
        while self.in_flight() > 0 {
            self.receive(|_, succeeded| failed += u32::from(!succeeded)).await?;
        }
        ensure!(failed == 0, "{failed} requests that prepare the load failed");
        Ok(())
    }

    /// The names of a node's children.
    async fn children(&mut self, path: &str) -> anyhow::Result<Vec<String>> {
        self.request(GET_CHILDREN, |out| {
            put_buffer(out, path.as_bytes());
            out.put_u8(0);
        });
        self.flush().await?;
        let mut body = self.frame().await?;
        ensure!(body.len() >= 20, "an answer of {} bytes", body.len());
        body.advance(16);
        let mut names = Vec::new();
        for _ in 0..body.get_i32() {
            ensure!(body.len() >= 4, "a list that ends early");
            let length = usize::try_from(body.get_i32())?;
            ensure!(body.len() >= length, "a name that ends early");
            names.push(String::from_utf8(body.split_to(length).to_vec())?);
        }
        Ok(names)
    }

    /// Asks that a node exist. It is an answer like any other if it does already.
    fn send_create(&mut self, path: &str, value: &[u8]) {
        self.in_flight.push_back(Instant::now());
        self.request(CREATE, |out| put_create(out, path, value));
    }

    /// Asks for a node's deletion.
    fn send_delete(&mut self, path: &str) {
        self.in_flight.push_back(Instant::now());
        self.request(DELETE, |out| {
            put_buffer(out, path.as_bytes());
            out.put_i32(-1);
        });
    }

    /// Sets a watch on a node's data.
    fn send_watch(&mut self, path: &str) {
        self.in_flight.push_back(Instant::now());
        self.request(GET_DATA, |out| {
            put_buffer(out, path.as_bytes());
            out.put_u8(1);
        });
    }

    /// How many requests have no answer yet.
    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends what was asked.
    async fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    /// Waits for answers and hands each one's latency and success to `record`; returns after all
    /// that have come, one at least.
    async fn receive(&mut self, mut record: impl FnMut(Instant, bool)) -> anyhow::Result<()> {
        let mut answered = false;
        loop {
            while let Some(packet) = self.take_packet()? {
                if packet.xid < 0 {
                    continue;
                }
                let asked = self.in_flight.pop_front().context("an answer nobody asked for")?;
                record(asked, matches!(packet.error, 0 | NODE_EXISTS | NO_NODE));
                answered = true;
            }
            if answered {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// Waits for a watch to fire.
    async fn wait_for_event(&mut self) -> anyhow::Result<()> {
        loop {
            while let Some(packet) = self.take_packet()? {
                if packet.xid == -1 {
                    return Ok(());
                }
            }
            self.fill().await?;
        }
    }

    /// Ends the session.
    async fn close(mut self) -> anyhow::Result<()> {
        self.request(CLOSE_SESSION, |_| {});
        self.flush().await?;
        // The server closes first and keeps the port.
        while self.stream.read_buf(&mut self.input).await? > 0 {
            self.input.clear();
        }
        Ok(())
    }

    fn request(&mut self, kind: i32, body: impl FnOnce(&mut BytesMut)) {
        self.xid += 1;
        let xid = self.xid;
        self.packet(|out| {
            out.put_i32(xid);
            out.put_i32(kind);
            body(out);
        });
    }

    fn packet(&mut self, body: impl FnOnce(&mut BytesMut)) {
        let start = self.output.len();
        self.output.put_i32(0);
        body(&mut self.output);
        let length = i32::try_from(self.output.len() - start - 4).expect("a small packet");
        self.output[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn take_packet(&mut self) -> anyhow::Result<Option<Packet>> {
        let Some(mut body) = self.take_frame()? else { return Ok(None) };
        ensure!(body.len() >= 16, "an answer of {} bytes", body.len());
        let xid = body.get_i32();
        body.advance(8);
        Ok(Some(Packet { xid, error: body.get_i32() }))
    }

    async fn frame(&mut self) -> anyhow::Result<BytesMut> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    fn take_frame(&mut self) -> anyhow::Result<Option<BytesMut>> {
        let Some(head) = self.input.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(i32::from_be_bytes(*head)).context("a negative length")?;
        if self.input.len() < 4 + length {
            return Ok(None);
        }
        self.input.advance(4);
        Ok(Some(self.input.split_to(length)))
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        self.input.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(())
    }
}

fn put_buffer(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).expect("a small buffer"));
    out.put_slice(bytes);
}

fn put_set(out: &mut BytesMut, path: &str, value: &[u8]) {
    put_buffer(out, path.as_bytes());
    put_buffer(out, value);
    out.put_i32(-1);
}

fn put_create(out: &mut BytesMut, path: &str, value: &[u8]) {
    put_buffer(out, path.as_bytes());
    put_buffer(out, value);
    out.put_i32(1);
    out.put_i32(31);
    put_buffer(out, b"world");
    put_buffer(out, b"anyone");
    out.put_i32(0);
}

fn put_multi_header(out: &mut BytesMut, kind: i32, done: bool) {
    out.put_i32(kind);
    out.put_u8(done.into());
    out.put_i32(-1);
}
