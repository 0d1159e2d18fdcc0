//! How a server starts and how it stops.

use std::cell::Cell;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use conclave_proto::ServerId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::limits::{APPLIED_BEFORE_OTHERS, TURN_ANSWERS_BYTES, TURN_NODES};
use crate::net::{KeysError, Port, WatchedKeys};
use crate::peers::{self, Event, Frame, Links};
use crate::replica::{self, Input, Replica};
use crate::store::{self, EXIT_STORAGE, Identity, Opened, StoreError};
use crate::wire::Wire;
use crate::zab;

use super::audit::{Audit, Record};
use super::clients::Clients;
use super::clock::{self, Clock};
use super::disk::{Log, Outcomes, Scribe};
use super::drive::{Drive, DriveState};
use super::inbox::{Inbox, Part};
use super::metrics::Metrics;
use super::passwords::Passwords;
use super::ports::{Ports, Room};
use super::pulse::{Pulse, beat};
use super::transfers::Transfers;
use super::words::Shown;
use super::{Member, Settings, admin, listener};

/// The exit code when an address cannot be listened on (`EX_UNAVAILABLE` of sysexits.h).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The exit code of a server whose state differs from the leader's, or that does not understand
/// what the others have committed (`EX_SOFTWARE`).
pub const EXIT_DIVERGED: u8 = 70;
/// The exit code when the configuration cannot be used (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;
/// The exit code when the data directory cannot be used (`EX_CANTCREAT`).
pub const EXIT_DATA: u8 = 73;

/// How long a server that was asked to stop may take to hand over.
const HAND_OVER_DEADLINE: Duration = Duration::from_millis(700);
/// How long the last words to clients may take.
const GOODBYE: Duration = Duration::from_millis(100);
/// Tasks run before the system is asked again for what is ready: enough for every connection that
/// one question can return, so that a turn of the loop follows all of them.
const TASKS_PER_POLL: u32 = 1024;
/// With room for fewer clients than this, a server says so when it starts.
const FEW_CLIENTS: usize = 100;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {whom}: {source}{}", advice(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Who would connect there.
        whom: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The process id cannot be written down.
    #[error("cannot write the process id to {}: {source}", file.display())]
    PidFile {
        /// Where.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate or a key cannot be used.
    #[error("cannot use {0}")]
    Keys(#[from] KeysError),
    /// The system refuses something that every process needs.
    #[error("cannot start the server: {0}")]
    System(#[from] io::Error),
}

#[expect(clippy::wildcard_enum_match_arm, reason = "there is no advice on most kinds")]
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            " (another process uses the port: stop it, or choose another port)"
        }
        io::ErrorKind::AddrNotAvailable => " (it is not an address of this machine)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 are for the administrator)",
        _ => "",
    }
}

impl StartError {
    /// The code with which the process should exit.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Store(error) if error.is_unusable() => EXIT_DATA,
            StartError::PidFile { .. } => EXIT_DATA,
            StartError::Store(_) => u8::try_from(EXIT_STORAGE).expect("an exit code fits"),
            StartError::Keys(_) => EXIT_CONFIG,
            StartError::Listen { .. } | StartError::System(_) => EXIT_UNAVAILABLE,
        }
    }
}

/// Runs a server until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// If it cannot start. A failure later on ends the process: see the exit codes.
pub fn run(settings: &Settings) -> Result<(), StartError> {
    let clock = Clock::start();
    let files = raise_file_limit();
    let room = Room::of(settings, files);
    if room.clients < FEW_CLIENTS {
        tracing::warn!(
            files,
            clients = room.clients,
            "the limit of open files leaves room for few clients: raise it (ulimit -n, or LimitNOFILE \
             of systemd)"
        );
    }
    let metrics = Metrics::new();
    // Ports first: a server that is started twice says so before it touches anything.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(TASKS_PER_POLL)
        .build_local(LocalOptions::default())?;
    let outcome = runtime.block_on(async {
        let ports = Ports::open(settings, room, &metrics)?;
        let identity = Identity { cluster: settings.cluster.clone(), server: settings.id };
        let options = store::Options {
            log_dir: settings.log_dir.clone(),
            map_bytes: settings.storage.map_bytes,
            repairable: is_repairable(settings.id, &settings.members),
            lost: settings.lost_data,
            ..store::Options::default()
        };
        let opened = store::open(&settings.data_dir, &identity, options)?;
        if let Some(file) = &settings.pid_file {
            write_pid(file)?;
        }
        announce(settings, &ports, &opened, clock);
        let fixed = Fixed { settings, clock, files, room, metrics };
        let stop = start(fixed, ports, opened)?;
        stop.wait().await;
        tracing::info!("stopped");
        Ok(())
    });
    // Nobody waits any more for the names of members, the only work that is done aside by the runtime.
    runtime.shutdown_background();
    outcome
}

/// Whether the others can bring back what this server has lost. It counts in no quorum until then, so
/// they must be a majority without it.
fn is_repairable(id: ServerId, members: &[Member]) -> bool {
    let voters = || members.iter().filter(|member| !member.observer);
    voters().filter(|member| member.id != id).count() > voters().count() / 2
}

fn write_pid(file: &Path) -> Result<(), StartError> {
    fs::write(file, format!("{}\n", std::process::id()))
        .map_err(|source| StartError::PidFile { file: file.into(), source })
}

/// Allows as many open files as the system lets us. Returns how many there may be.
fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    allowed.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

fn announce(settings: &Settings, ports: &Ports, opened: &Opened, clock: Clock) {
    // The configuration may have left their numbers to the system.
    let client = ports.client.address();
    let name = |port: &Option<Port>| {
        port.as_ref().map_or_else(|| "none".into(), |port| port.address().to_string())
    };
    let (zookeeper, zookeeper_secure) = (name(&ports.zookeeper), name(&ports.zookeeper_secure));
    let admin = ports.admin.as_ref().map_or_else(|| "none".into(), address);
    let report = &opened.report;
    if report.cut_bytes > 0 {
        tracing::info!(
            bytes = report.cut_bytes,
            "cut off the end of the log, which a crash had left half written"
        );
    }
    for damage in &report.damage {
        tracing::error!("{damage}; the other members will repair it");
    }
    if !settings.exposed.is_empty() {
        let exposed = settings.exposed.join(", ");
        tracing::warn!("insecure = true: other machines can reach plaintext: {exposed}");
    }
    let voters = settings.members.iter().filter(|member| !member.observer).count();
    if voters.is_multiple_of(2) {
        tracing::warn!(
            voters,
            "an even number of servers that vote survives no more failures than one less: add one, or \
             make one an observer"
        );
    }
    let last = opened.durable.entries.last().map_or(opened.durable.base.zxid, |entry| entry.zxid);
    tracing::info!(
        id = %settings.id, cluster = settings.cluster, %client, zookeeper, zookeeper_secure, admin,
        tls = settings.tls.is_some(),
        data = %settings.data_dir.display(), zxid = %last, new = report.new,
        recovered_in_ms = clock.millis(),
        "server {} of {} starts", settings.id, settings.members.len(),
    );
}

fn address(port: &tokio::net::TcpListener) -> String {
    port.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
}

/// What is known before anything is opened.
struct Fixed<'a> {
    settings: &'a Settings,
    clock: Clock,
    /// How many files this process may open.
    files: usize,
    room: Room,
    metrics: Arc<Metrics>,
}

/// Puts everything together and sets it going.
fn start(fixed: Fixed<'_>, ports: Ports, opened: Opened) -> Result<Rc<Stop>, StartError> {
    let Fixed { settings, clock, files, room, metrics } = fixed;
    let inbox = Rc::new(Inbox::default());
    let outcomes = Outcomes::new(inbox.bell().clone());
    let stop = Rc::new(Stop::default());
    let lost = metrics.audit_lost.clone();
    let audit = Audit::start(settings.audit.as_ref(), settings.id, clock, lost)?;
    audit.record(Record::Started {
        cluster: settings.cluster.clone(),
        members: settings
            .members
            .iter()
            .map(|Member { id, peer, .. }| format!("{id}={peer}"))
            .collect(),
    });
    let passwords = Passwords::start(&settings.users, metrics.password_checks.clone())?;
    let guards = (audit.clone(), passwords);
    let clients =
        Clients::new(settings, clock, metrics.clone(), inbox.clone(), guards, room.clients);
    let links = link(settings, ports.peer, ports.keys.members.clone(), inbox.clone(), audit);
    let scribe = Scribe::new(opened.log, clock, outcomes.clone(), metrics.clone());
    let transfers = Transfers::new(
        links.clone(),
        inbox.clone(),
        outcomes.clone(),
        metrics.clone(),
        opened.home.clone(),
    );
    let pulse = Pulse::new(&settings.timing);
    spawn_local(beat(pulse.pace(), inbox.bell().clone()));
    let drive = Drive {
        replica: Replica::new(replica_config(settings), opened.durable, opened.nodes),
        inbox: inbox.clone(),
        outcomes,
        log: Log::start(scribe, settings.storage.log_thread)?,
        links,
        clients: clients.clone(),
        transfers,
        home: opened.home,
        clock,
        pulse,
        metrics: metrics.clone(),
        storage: settings.storage,
        keys: ports.keys,
        stop: stop.clone(),
        shown: Shown::new(settings, files),
        state: DriveState::default(),
    };
    spawn_local(drive.run());
    for port in [ports.zookeeper, ports.zookeeper_secure].into_iter().flatten() {
        let entropy = clients.clone();
        let wire = move || Wire::zookeeper(entropy.entropy.borrow_mut().number());
        spawn_local(listener::accept(port, clients.clone(), wire));
    }
    spawn_local(listener::accept(ports.client, clients, Wire::native));
    spawn_local(obey(signals()?, inbox.clone(), stop.clone()));
    if let Some(port) = ports.admin {
        let (asking, mut asked) = mpsc::channel(16);
        spawn_local(admin::serve(port, asking, metrics));
        spawn_local(async move {
            while let Some(answer) = asked.recv().await {
                inbox.ask(answer);
            }
        });
    }
    Ok(stop)
}

fn replica_config(settings: &Settings) -> replica::Config {
    let ids = |observer| {
        let of_kind = settings.members.iter().filter(move |member| member.observer == observer);
        of_kind.map(|member| member.id).collect::<Vec<ServerId>>()
    };
    let timing = settings.timing;
    let (session_timeout_min_ms, session_timeout_max_ms) = timing.session_timeout_ms;
    replica::Config {
        zab: zab::Config {
            heartbeat_ticks: timing.heartbeat_ticks,
            silence_ticks: timing.silence_ticks,
            ..zab::Config::new(settings.id, ids(false), ids(true), clock::seed())
        },
        tick_ms: u32::try_from(timing.tick.as_millis()).expect("a tick is at most a second"),
        session_timeout_min_ms,
        session_timeout_max_ms,
        super_digest: settings.super_digest.as_ref().map(|digest| digest.reveal().to_owned()),
        throttle_ms: settings.throttle_ms,
        read_only: settings.read_only,
        local_sessions: settings.local_sessions,
        turn_answers_bytes: TURN_ANSWERS_BYTES,
        turn_nodes: TURN_NODES,
        applied_before_others: APPLIED_BEFORE_OTHERS,
        members_text: Some(members_text(settings).into()),
    }
}

/// The members as ZooKeeper's clients read them. Elections have no port of their own: it is 0, since
/// the Java client refuses to read of one that is the peers' port, too.
fn members_text(settings: &Settings) -> String {
    let mut text = String::new();
    for member in &settings.members {
        let Member { id, peer, observer, zookeeper } = member;
        let role = if *observer { "observer" } else { "participant" };
        let own = settings.zookeeper.filter(|_| *id == settings.id);
        let client = zookeeper.clone().or_else(|| own.map(|address| address.to_string()));
        let client = client.map_or_else(String::new, |client| format!(";{client}"));
        text += &format!("server.{id}={peer}:0:{role}{client}\n");
    }
    text + "version=0"
}

/// Links with the other servers; what happens on the links goes into the inbox.
fn link(
    settings: &Settings,
    port: Option<Port>,
    keys: Option<WatchedKeys>,
    inbox: Rc<Inbox>,
    audit: Audit,
) -> Links {
    let others = settings.members.iter().filter(|member| member.id != settings.id);
    let voters = settings.members.iter().filter(|member| !member.observer);
    let settings = peers::Settings {
        cluster: settings.cluster.clone(),
        me: settings.id,
        others: others.map(|member| (member.id, member.peer.clone())).collect(),
        voters: voters.map(|member| member.id).collect(),
        instance: clock::seed(),
        seed: clock::seed(),
        keys,
    };
    Links::start(settings, port, move |event| match event {
        Event::Up(id) => {
            audit.record(Record::MemberLinked { member: id.get() });
            inbox.push(Input::LinkUp(id));
        }
        Event::Down(id) => {
            audit.record(Record::MemberLost { member: id.get() });
            inbox.push(Input::LinkDown(id));
        }
        Event::Refused { address, why } => {
            audit.record(Record::MemberRefused { address: address.to_string(), why });
        }
        Event::Said { from, frame } => match frame {
            Frame::Message(message) => inbox.push(Input::Peer { from, message }),
            Frame::Chunk(chunk) => inbox.push_part(from, Part::Chunk(chunk)),
            Frame::Credit { sync, chunks } => {
                inbox.push_part(from, Part::Credit { sync, chunks });
            }
        },
    })
}

/// How the server comes to its end.
#[derive(Default)]
pub(super) struct Stop {
    handed_over: Notify,
    stopped: Notify,
    stopping: Cell<bool>,
}

impl Stop {
    /// The replica has nothing more to do.
    pub(super) fn handed_over(&self) {
        if self.stopping.get() {
            self.handed_over.notify_one();
        }
    }

    async fn wait(&self) {
        self.stopped.notified().await;
    }
}

fn signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

/// Waits for the signal to stop, hands over, says goodbye; a second signal stops at once.
async fn obey(signals: (Signal, Signal), inbox: Rc<Inbox>, stop: Rc<Stop>) {
    let (mut terminate, mut interrupt) = signals;
    let mut asked = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    asked().await;
    tracing::info!("stopping");
    stop.stopping.set(true);
    inbox.push(Input::HandOver);
    let leave = async {
        // Late or not: the others find out by themselves.
        timeout(HAND_OVER_DEADLINE, stop.handed_over.notified()).await.ok();
        sleep(GOODBYE).await;
    };
    tokio::select! {
        () = leave => {}
        () = asked() => {}
    }
    stop.stopped.notify_one();
}
