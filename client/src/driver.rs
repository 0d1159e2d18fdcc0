//! The task that drives a client: it alone owns the session and the connection.
//!
//! Each time it is woken it takes all commands, reads all that has come, writes all that may be
//! sent in one go, and only then tells the callers.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use conclave_proto::convert::{DecodeError, decode_server, encode_client};
use conclave_proto::frame::{FrameError, HEADER_BYTES, next_frame, write_frame};
use conclave_proto::limits::RESPONSE_FRAME_BYTES;
use conclave_proto::message::Refused;
use conclave_proto::{ClientMessage, ErrorCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::Error;
use crate::detach::detach;
use crate::dial::{Dialer, Secure, Stream, dial};
use crate::limits::{OUTBOX_BYTES, READ_BYTES, WATCH_ITEMS_PRESSING};
use crate::queue::{Command, Completion};
use crate::session::{Config, Effect, Failure, Leave, Session};
use crate::shared::Shared;
use crate::state::State;
use crate::tls::{Connector, explain};
use crate::watch::Inbox;

/// How long a client whose session has ended waits until the server closes the connection.
const SEE_OFF: Duration = Duration::from_secs(1);

/// Drives a client until its session ends.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    session: Session<Completion, Arc<Inbox>>,
    dialer: Dialer,
    /// Connections are within TLS.
    connector: Option<Connector>,
    /// How long one attempt to connect and shake hands may take.
    attempt: Attempt,
    /// Told when the session is open for the first time, or never will be.
    ready: Option<oneshot::Sender<Result<(), Error>>>,
    commands: VecDeque<Command>,
    effects: Vec<Effect<Completion, Arc<Inbox>>>,
    /// A watch with many items waiting, and how many there were when this was last looked at.
    pressing: Option<(Arc<Inbox>, usize)>,
}

/// How a server that speaks TLS answers one who does not.
const TLS_ALERT: [u8; 2] = [21, 3];

/// How long one attempt to connect and shake hands may take.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    /// To reach a server that is to open the session.
    pub(crate) reach: Duration,
    /// To open it, once the server is reached. A server without a leader takes its time to refuse, and to leave it
    /// before may leave a session behind that nobody uses.
    pub(crate) open: Duration,
    /// To resume it: so short that several servers can be tried before it expires.
    pub(crate) resume: Duration,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{}", explain(.0))]
    Io(#[from] io::Error),
    #[error("it speaks TLS: say which CA has signed its certificate (Builder::tls, --tls-ca)")]
    SpeaksTls,
    #[error("it closed the connection")]
    Closed,
    #[error("it sent something that is not the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("it sent something that is not the protocol: {0}")]
    Message(#[from] DecodeError),
    #[error("{}", describe(.0))]
    Left(Leave),
}

/// What a turn calls for.
enum Turn {
    /// Another one at once.
    Again,
    /// Another one after those who read watches have had theirs.
    Yield,
    /// To wait until something comes.
    Idle,
}

/// A connection and the bytes that are on their way on it.
struct Link<S> {
    stream: S,
    received: BytesMut,
    outbox: BytesMut,
    /// How many bytes of the outbox are written.
    written: usize,
    /// What is written may not have left yet: TLS keeps some of it when the socket is full.
    unflushed: bool,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        config: Config,
        dialer: Dialer,
        connector: Option<Connector>,
        attempt: Attempt,
        ready: oneshot::Sender<Result<(), Error>>,
    ) -> Driver {
        Driver {
            shared,
            session: Session::new(config),
            dialer,
            connector,
            attempt,
            ready: Some(ready),
            commands: VecDeque::new(),
            effects: Vec::new(),
            pressing: None,
        }
    }

    /// Drives the client until its session ends.
    pub(crate) async fn run(mut self) {
        let last = self.drive().await;
        // Nobody's operations wait while the connection is seen off.
        drop(self);
        if let Some(stream) = last {
            see_off(stream).await;
        }
    }

    /// Drives the client until its session ends; then the connection on which it did comes back.
    async fn drive(&mut self) -> Option<Stream> {
        while self.session.ended().is_none() {
            let (server, at_ms) = self.dialer.choose(self.shared.now_ms());
            let name = self.dialer.name(server).to_owned();
            let secure = self.connector.as_mut().map(|connector| Secure {
                config: connector.refresh(),
                name: connector.server_name(&name),
            });
            let (at, dice) = (self.shared.instant(at_ms), self.dialer.dice());
            let within = self.within(self.attempt.reach);
            let dialled = dial(name, secure, at, within, dice);
            let dialled = self.attend(dialled).await?;
            let since_ms = self.shared.now_ms();
            let (broken, stream) = match dialled {
                Ok(mut stream) => (self.serve(&mut stream).await, Some(stream)),
                Err(error) => (Broken::Io(error), None),
            };
            self.session.disconnected();
            self.settle();
            self.note_failure(server, since_ms, &broken);
            if let Broken::Left(Leave::Ended) = broken {
                return stream;
            }
        }
        None
    }

    /// Waits for `future` while there is no connection; `None` if the session ended meanwhile.
    async fn attend<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut timer = pin!(sleep_until(self.shared.instant(0)));
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            loop {
                let now_ms = self.shared.now_ms();
                let has_commands = self.take_commands(now_ms, cx);
                self.session.tick(now_ms);
                self.settle();
                if self.session.ended().is_some() {
                    return Poll::Ready(None);
                }
                if !has_commands && self.poll_timer(timer.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// How long a part of an attempt may take: so long if the session is to be opened.
    fn within(&self, to_open: Duration) -> Duration {
        if self.session.is_new() { to_open } else { self.attempt.resume }
    }

    /// Serves the session on a connection until that ends.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: S) -> Broken {
        let within = self.within(self.attempt.open);
        let attempt_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.session.connected(self.shared.now_ms().saturating_add(attempt_ms));
        let mut link = Link {
            stream,
            received: BytesMut::with_capacity(READ_BYTES),
            outbox: BytesMut::with_capacity(OUTBOX_BYTES),
            written: 0,
            unflushed: false,
        };
        let mut timer = pin!(sleep_until(self.shared.instant(0)));
        loop {
            if let Err(broken) = poll_fn(|cx| self.turns(&mut link, timer.as_mut(), cx)).await {
                return broken;
            }
            yield_now().await;
        }
    }

    /// Turns until there is nothing to do, or others are to have their turn.
    fn turns<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        link: &mut Link<S>,
        mut timer: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match self.turn(link, cx)? {
                Turn::Again => {}
                Turn::Yield => return Poll::Ready(Ok(())),
                Turn::Idle => ready!(self.poll_timer(timer.as_mut(), cx)),
            }
        }
    }

    /// One turn: take, read, write, tell.
    fn turn<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        link: &mut Link<S>,
        cx: &mut Context<'_>,
    ) -> Result<Turn, Broken> {
        let now_ms = self.shared.now_ms();
        let has_commands = self.take_commands(now_ms, cx);
        let holds_back = self.holds_back(now_ms);
        let has_read = !holds_back && self.read(link, now_ms, cx)?;
        self.session.tick(now_ms);
        let has_written = self.write(link, now_ms, cx)?;
        self.settle();
        if let Some(leave) = self.session.leaving() {
            return Err(Broken::Left(leave));
        }
        Ok(if holds_back || self.pressing.is_some() {
            Turn::Yield
        } else if has_commands || has_read || has_written {
            Turn::Again
        } else {
            Turn::Idle
        })
    }

    /// Whether to read nothing for now: a burst of events shall not overflow what waits for a
    /// reader who reads. One who makes no progress is not waited for: perhaps it waits for an
    /// answer. Nor is one while a pong is to come: without it the session is less and less certain,
    /// and the server is left. Then what comes may overflow into a gap.
    fn holds_back(&mut self, now_ms: u64) -> bool {
        let Some((inbox, before)) = self.pressing.take() else { return false };
        let now = inbox.len();
        let makes_progress = now > WATCH_ITEMS_PRESSING && now < before;
        let holds_back = makes_progress && self.session.can_wait(now_ms);
        if holds_back {
            self.pressing = Some((inbox, now));
        }
        holds_back
    }

    /// Takes all commands. False if there were none; then their arrival wakes the task.
    fn take_commands(&mut self, now_ms: u64, cx: &mut Context<'_>) -> bool {
        if self.shared.queue.poll_take(cx, &mut self.commands).is_pending() {
            return false;
        }
        for command in self.commands.drain(..) {
            match command {
                Command::Submit(submission) => self.session.submit(
                    now_ms,
                    submission.op,
                    submission.level,
                    submission.watch,
                    submission.completion,
                ),
                Command::Unwatch(id) => self.session.unwatch(now_ms, id),
                Command::Close(completion) => self.session.close(now_ms, completion),
            }
        }
        true
    }

    /// Reads once and hears all whole messages. False if nothing has come; then its arrival wakes
    /// the task.
    fn read<S: AsyncRead + Unpin>(
        &mut self,
        link: &mut Link<S>,
        now_ms: u64,
        cx: &mut Context<'_>,
    ) -> Result<bool, Broken> {
        link.received.reserve(READ_BYTES / 2);
        let Poll::Ready(count) = poll_read(&mut link.stream, &mut link.received, cx)? else {
            return Ok(false);
        };
        if count == 0 {
            return Err(Broken::Closed);
        }
        // No frame begins like this, it would be far too long.
        if link.received.starts_with(&TLS_ALERT) {
            return Err(Broken::SpeaksTls);
        }
        while let Some(frame) = next_frame(&mut link.received, RESPONSE_FRAME_BYTES)? {
            self.session.receive(now_ms, detach(decode_server(frame)?));
        }
        Ok(true)
    }

    /// Writes all that may be sent and fits the outbox. False if nothing more can be done; then
    /// the task is woken when the connection takes more.
    fn write<S: AsyncWrite + Unpin>(
        &mut self,
        link: &mut Link<S>,
        now_ms: u64,
        cx: &mut Context<'_>,
    ) -> Result<bool, Broken> {
        self.encode(&mut link.outbox, now_ms);
        let mut has_written = false;
        while link.written < link.outbox.len() {
            let rest = &link.outbox[link.written..];
            match Pin::new(&mut link.stream).poll_write(cx, rest)? {
                Poll::Pending => return Ok(false),
                Poll::Ready(0) => return Err(Broken::Closed),
                Poll::Ready(count) => link.written += count,
            }
            has_written = true;
        }
        link.outbox.clear();
        link.written = 0;
        link.unflushed |= has_written;
        if link.unflushed {
            link.unflushed = Pin::new(&mut link.stream).poll_flush(cx)?.is_pending();
        }
        Ok(has_written)
    }

    /// Fills the outbox. A ping that is due goes into it however full it is: only its deadline shows
    /// that a server which takes nothing any more is frozen or cut off.
    fn encode(&mut self, outbox: &mut BytesMut, now_ms: u64) {
        while outbox.len() < OUTBOX_BYTES || self.session.owes_ping() {
            let limit = self.session.limits().map(|limits| limits.frame_bytes);
            let Some(message) = self.session.next_message(now_ms) else { return };
            let is_request = matches!(message, ClientMessage::Request { .. });
            let start = outbox.len();
            write_frame(outbox, |body| encode_client(message, body));
            let bytes = outbox.len() - start - HEADER_BYTES;
            let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
            if is_request && bytes > limit {
                outbox.truncate(start);
                self.session.refuse_last(bytes, limit);
            }
        }
    }

    /// Tells the callers what has come of their operations and watches.
    fn settle(&mut self) {
        self.shared.learn(self.session.facts());
        let mut effects = std::mem::take(&mut self.effects);
        self.session.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                // Nobody waits for the outcome any more: that is the caller's choice.
                Effect::Complete(completion, outcome) => drop(completion.send(outcome)),
                Effect::Event(inbox, event, value) => {
                    inbox.event(event, value);
                    let waiting = inbox.len();
                    if waiting > WATCH_ITEMS_PRESSING {
                        self.pressing = Some((inbox, waiting + 1));
                    }
                }
                Effect::Gap(inbox, resumed_at) => inbox.gap(resumed_at),
                Effect::Finish(inbox, failure) => inbox.finish(failure),
                Effect::State(state) => self.tell_state(state),
                Effect::IdentityRefused(scheme) => {
                    warn!("the server no longer accepts the session's {scheme} identity");
                }
            }
        }
        self.effects = effects;
        let (ops, bytes) = self.session.take_freed();
        if ops > 0 {
            self.shared.queue.completed(ops, bytes);
        }
    }

    fn tell_state(&mut self, state: State) {
        let facts = self.session.facts();
        match (state, facts.server) {
            (State::Connected | State::Resumed, Some(server)) => {
                debug!("session {} is {state:?} at server {server}", facts.session);
            }
            (State::Expired, _) => warn!("session {} has expired", facts.session),
            _ => debug!("session {} is {state:?}", facts.session),
        }
        self.shared.states.set(state);
        if state == State::Connected
            && let Some(ready) = self.ready.take()
        {
            // The builder may have given up already; then it has dropped the handle as well.
            drop(ready.send(Ok(())));
        }
    }

    /// Remembers for the next choice how it went with a server.
    fn note_failure(&mut self, server: usize, since_ms: u64, broken: &Broken) {
        let name = self.dialer.name(server).to_owned();
        self.shared.set_last_failure(format!("{name}: {broken}"));
        let now_ms = self.shared.now_ms();
        let lived_ms = now_ms - since_ms;
        match broken {
            Broken::Left(Leave::Ended) => return,
            Broken::Left(Leave::GoAway(backoff_ms)) => {
                self.dialer.sent_away(server, now_ms, *backoff_ms);
            }
            Broken::Left(Leave::Refused(refused)) => {
                self.dialer.failed(server, now_ms, lived_ms, refused.backoff_ms);
                self.give_up(&name, refused);
            }
            Broken::Left(Leave::NotServing(_) | Leave::Silent | Leave::Violation(_))
            | Broken::Io(_)
            | Broken::SpeaksTls
            | Broken::Closed
            | Broken::Frame(_)
            | Broken::Message(_) => self.dialer.failed(server, now_ms, lived_ms, 0),
        }
        match broken {
            Broken::Frame(_) | Broken::Message(_) | Broken::Left(Leave::Violation(_)) => {
                warn!("left {name}: {broken}");
            }
            Broken::Io(_) | Broken::SpeaksTls | Broken::Closed | Broken::Left(_) => {
                info!("left {name}: {broken}")
            }
        }
    }

    /// A first session that is refused for good is given up.
    fn give_up(&mut self, server: &str, refused: &Refused) {
        let is_final = matches!(
            refused.code,
            ErrorCode::AuthFailed | ErrorCode::BadArguments | ErrorCode::Unimplemented
        );
        if is_final && let Some(ready) = self.ready.take() {
            let (code, message) = (refused.code, refused.message.clone());
            let error = Error::Refused { server: server.to_owned(), code, message };
            // The builder may have given up already.
            drop(ready.send(Err(error)));
            self.session.abandon();
            self.settle();
        }
    }

    /// Ready once the session has something to do because of the time.
    fn poll_timer(&self, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at_ms) = self.session.next_tick() else { return Poll::Pending };
        let at = self.shared.instant(at_ms);
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.poll(cx)
    }
}

impl Drop for Driver {
    /// Whether the session has ended or the runtime is shut down: nobody waits in vain.
    fn drop(&mut self) {
        self.session.abandon();
        let failure = self.session.ended().cloned().unwrap_or(Failure::Closed { confirmed: false });
        for command in self.shared.queue.end(failure) {
            match command {
                Command::Submit(submission) => self.session.submit(
                    0,
                    submission.op,
                    submission.level,
                    submission.watch,
                    submission.completion,
                ),
                Command::Unwatch(_) => {}
                Command::Close(completion) => self.session.close(0, completion),
            }
        }
        self.settle();
    }
}

/// Lets the server close first, as it does after a session's end: whoever closes first keeps the
/// connection's two ports for a minute, and a client that opens and closes sessions all the time
/// would soon have none left.
async fn see_off(mut stream: Stream) {
    let mut rest = [0; 256];
    let closed = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    // A server that does not close in time is left.
    timeout(SEE_OFF, closed).await.ok();
}

fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    into: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    tokio_util::io::poll_read_buf(Pin::new(stream), cx, into)
}

fn describe(leave: &Leave) -> String {
    match leave {
        Leave::Refused(refused) => format!("it refused the session: {}", refused.message),
        Leave::GoAway(_) => "it is about to stop".into(),
        Leave::NotServing(code) => code.describe().into(),
        Leave::Silent => "it does not answer".into(),
        Leave::Violation(what) => format!("it broke the protocol: {what}"),
        Leave::Ended => "the session has ended".into(),
    }
}
