//! A command that runs while something is held, and never longer.

use std::fs;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IsTerminal as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use conclave_client::Client;
use conclave_client::recipes::{Hold, Loss};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::guard::{Guard, Introduction, Target};
use super::{Environment, Program, code, group};
use crate::cli::tell;

/// The program that runs, be it that its file has been replaced by a newer one since it began.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// How soon it is looked again whether a group has ended, at first and in the long run.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_LATER: Duration = Duration::from_millis(500);

/// Within which time a process that is killed is gone, unless the system holds it, or it is
/// another user's by now.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// Become a command that ends when its parent does
///
/// The kernel sees to it, for this process alone. Whatever else the command starts, its guardian
/// ends.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(in crate::cli) struct Args {
    /// The process that holds something
    parent: i32,
    #[command(flatten)]
    introduction: Introduction,
    #[command(flatten)]
    program: Program,
}

pub(in crate::cli) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.program.check()?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking for a signal")?;
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        // It died before the kernel was asked.
        return Ok(ExitCode::from(code::FAILED));
    }
    if let Err(error) = args.introduction.make() {
        tell(&format!("conclave: telling the guardian of COMMAND whom to guard: {error}"));
        return Ok(ExitCode::from(code::FAILED));
    }
    let (program, arguments) = args.program.command.split_first().expect("checked");
    let error = std::process::Command::new(program).args(arguments).exec();
    tell(&format!("conclave: running {program}: {error}"));
    let missing = error.kind() == ErrorKind::NotFound;
    Ok(ExitCode::from(if missing { code::NOT_FOUND } else { code::NOT_EXECUTABLE }))
}

/// How a command ended.
pub(super) enum End {
    /// By itself, or by a signal that was passed on.
    Done(ExitStatus),
    /// It was stopped, since what was held can no longer be assumed to be.
    Lost(Loss),
    /// It was stopped, since somebody asked for what was held.
    Revoked,
}

/// The exit code that stands for the end of a command.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let signal = status.signal().and_then(|number| u8::try_from(number).ok());
    let own = status.code().and_then(|code| u8::try_from(code).ok());
    let by_signal = signal.map(|number| code::SIGNAL.saturating_add(number));
    ExitCode::from(own.or(by_signal).unwrap_or(code::FAILED))
}

/// Signals that are the command's business, not this program's. Those that were ignored when this
/// began stay so, as `nohup` wants it, also for the command.
pub(super) struct Signals(Vec<(Signal, unix::Signal)>);

impl Signals {
    /// From now on they are caught.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn catch() -> io::Result<Signals> {
        let kinds = [
            (Signal::INT, SignalKind::interrupt()),
            (Signal::TERM, SignalKind::terminate()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status).unwrap_or_default();
        let caught = kinds
            .into_iter()
            .filter(|(number, _)| ignored >> (number.as_raw() - 1) & 1 == 0)
            .map(|(number, kind)| Ok((number, signal(kind)?)));
        Ok(Signals(caught.collect::<io::Result<_>>()?))
    }

    /// The next one that comes.
    pub(super) async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            let came = self.0.iter_mut().find_map(|(number, signal)| {
                matches!(signal.poll_recv(cx), Poll::Ready(Some(()))).then_some(*number)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Does something unless a signal comes first: then the exit code that says so.
    pub(super) async fn or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ExitCode> {
        tokio::select! {
            done = work => Ok(done),
            signal = self.next() => Err(signal_code(signal)),
        }
    }
}

/// The signals that a process ignores, by its `/proc/PID/status`: bit 0 is signal 1.
fn ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// The exit code of what a signal has ended.
pub(super) fn signal_code(signal: Signal) -> ExitCode {
    let number = u8::try_from(signal.as_raw()).unwrap_or_default();
    ExitCode::from(code::SIGNAL.saturating_add(number))
}

/// Runs a command while something is held.
///
/// When this returns, nothing of the command's group runs any more.
///
/// # Errors
/// If it cannot be started, guarded, or killed.
pub(super) async fn run_while_held(
    program: &Program,
    environment: Environment,
    (client, hold): (&Client, &Hold),
    signals: &mut Signals,
    revocable: bool,
) -> anyhow::Result<End> {
    let mut guard = Guard::start()?;
    let introduction = guard.introduction(client);
    let mut running = Running::start(program, environment, &introduction, None)?;
    let target = running.target();
    let end = tokio::select! {
        end = supervise(&mut running, (client, hold), signals, revocable) => end,
        error = guard.keep(client, target) => Err(error),
    };
    if end.is_err() {
        running.stop(Duration::ZERO, signals).await?;
    }
    end
}

/// Looks after a command until it and what it has started have ended.
async fn supervise(
    running: &mut Running,
    (client, hold): (&Client, &Hold),
    signals: &mut Signals,
    revocable: bool,
) -> anyhow::Result<End> {
    let lost = hold.lost();
    let revoked = async {
        hold.revoked().await;
        if !revocable || !hold.is_held() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(lost, revoked);
    loop {
        tokio::select! {
            // A key that has ended the command is not one that comes after its end.
            biased;
            signal = signals.next() => running.pass_on(signal),
            status = running.gone() => {
                let status = status?;
                // After a pause of this process it may not know yet that it was lost meanwhile.
                let is_certain = client.certain_until() > Instant::now().into_std();
                return Ok(if is_certain { End::Done(status) } else { End::Lost(Loss::Suspected) });
            }
            loss = &mut lost => {
                running.stop(patience(client, loss), signals).await?;
                return Ok(End::Lost(loss));
            }
            () = &mut revoked => {
                // The holder takes its time, as long as it holds it.
                let loss = tokio::select! {
                    stopped = running.stop(Duration::MAX, signals) => {
                        stopped?;
                        return Ok(End::Revoked);
                    }
                    loss = &mut lost => loss,
                };
                running.stop(patience(client, loss), signals).await?;
                return Ok(End::Lost(loss));
            }
        }
    }
}

/// Runs a command that need not be stopped by anybody but itself and its user, with something on
/// its standard input if it is given.
///
/// # Errors
/// If it cannot be started.
pub(super) async fn run_beside(
    program: &Program,
    environment: Environment,
    input: Option<Bytes>,
    signals: &mut Signals,
) -> anyhow::Result<ExitStatus> {
    let mut running = Running::start(program, environment, &[], input)?;
    loop {
        tokio::select! {
            // A key that has ended the command is not one that comes after its end.
            biased;
            signal = signals.next() => running.pass_on(signal),
            status = running.child.wait() => return Ok(status?),
        }
    }
}

/// How long before the certain end of a session a command under it is killed.
pub(super) fn margin(client: &Client) -> Duration {
    client.session_timeout() / 40
}

/// How long a command may take to stop. Nobody else has what was held before the session can have
/// expired, if its node is there; if that was lost, somebody else may have it already.
fn patience(client: &Client, loss: Loss) -> Duration {
    let certain_for = client.certain_until().saturating_duration_since(Instant::now().into_std());
    let is_there = matches!(loss, Loss::Suspected | Loss::Unwatched(_));
    if is_there { certain_for.saturating_sub(margin(client)) } else { Duration::ZERO }
}

/// A command that runs.
struct Running {
    child: Child,
    pid: Pid,
    /// Whether it and what it starts are a process group of their own. Not at a terminal, whose
    /// keys are for the group in the foreground alone.
    is_group: bool,
    /// How it has ended. What it has started may still run.
    status: Option<ExitStatus>,
    /// Whether what it has left behind has been asked to end.
    is_asked: bool,
}

impl Running {
    fn start(
        program: &Program,
        environment: Environment,
        introduction: &[String],
        input: Option<Bytes>,
    ) -> anyhow::Result<Running> {
        let is_group = !io::stdin().is_terminal();
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0("conclave").arg("run-held").arg(std::process::id().to_string());
        command.args(introduction).arg("--").args(&program.command).envs(environment);
        if is_group {
            command.process_group(0);
        }
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child =
            command.spawn().with_context(|| format!("starting {}", program.command[0]))?;
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            // A command that does not read all of it is none the worse.
            tokio::spawn(async move { pipe.write_all(&input).await.ok() });
        }
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.context("a process that has just been started has an id")?;
        Ok(Running { child, pid, is_group, status: None, is_asked: false })
    }

    fn target(&self) -> Target {
        if self.is_group { Target::Group(self.pid) } else { Target::Process(self.pid) }
    }

    /// Passes a signal on. A key of the terminal has reached everybody already.
    ///
    /// What the command has left behind is killed by the second that asks it to end: nobody else
    /// would end it, and it is waited for.
    fn pass_on(&mut self, signal: Signal) {
        let asks = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal);
        if self.status.is_some() && asks && std::mem::replace(&mut self.is_asked, true) {
            self.kill(Signal::KILL);
        } else if self.is_group || !matches!(signal, Signal::INT | Signal::QUIT) {
            self.kill(signal);
        }
    }

    /// Sends a signal. It may be gone already, which is as well.
    fn kill(&self, signal: Signal) {
        self.target().kill(signal).ok();
    }

    /// Waits until it has ended, and all of its group; gives how it has ended.
    async fn gone(&mut self) -> io::Result<ExitStatus> {
        let status = match self.status {
            Some(status) => status,
            None => *self.status.insert(self.child.wait().await?),
        };
        let mut pause = LOOK_FIRST;
        while self.is_group && group::runs(self.pid) {
            sleep(pause).await;
            pause = LOOK_LATER.min(2 * pause);
        }
        Ok(status)
    }

    /// Asks it to end, and ends it when it has not done so in that time.
    async fn stop(&mut self, patience: Duration, signals: &mut Signals) -> anyhow::Result<()> {
        if !patience.is_zero() {
            self.kill(Signal::TERM);
            let patience = sleep(patience);
            tokio::pin!(patience);
            loop {
                tokio::select! {
                    status = self.gone() => return status.map(drop).map_err(Into::into),
                    signal = signals.next() => self.pass_on(signal),
                    () = &mut patience => break,
                }
            }
        }
        self.kill(Signal::KILL);
        let gone = timeout(KILLED_WITHIN, self.gone()).await;
        gone.with_context(|| format!("process {} cannot be killed", self.pid))??;
        Ok(())
    }
}
