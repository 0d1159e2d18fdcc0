//! The guardian of a command that runs while something is held: it ends the command in time when
//! the process that holds it cannot.

use std::fs::OpenOptions;
use std::io::{self, PipeReader, Write as _, pipe, stdin};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use conclave_client::Client;
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process, kill_process_group};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::{Child, Command};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep, timeout};

use super::child::{Signals, THIS_PROGRAM, margin};
use crate::cli::tell;

/// Whom a signal goes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Process(Pid),
    /// All processes of the group of this number.
    Group(Pid),
}

impl Target {
    /// Sends a signal.
    ///
    /// # Errors
    /// If nobody is there any more, or it is somebody else's.
    pub(super) fn kill(self, signal: Signal) -> io::Result<()> {
        match self {
            Target::Process(pid) => kill_process(pid, signal)?,
            Target::Group(pid) => kill_process_group(pid, signal)?,
        }
        Ok(())
    }
}

/// What the guardian is told, again and again: whom to kill, and when, if it is told nothing more.
#[derive(Clone, Copy, Debug)]
struct Word {
    target: Target,
    /// By the clock that all processes of this machine share.
    at: Duration,
}

impl Word {
    /// As in kill(2), a group has the negative number. Then the nanoseconds.
    const LEN: usize = 4 + 8;

    fn encode(self) -> [u8; Word::LEN] {
        let number = match self.target {
            Target::Process(pid) => pid.as_raw_pid(),
            Target::Group(pid) => -pid.as_raw_pid(),
        };
        let at = u64::try_from(self.at.as_nanos()).unwrap_or(u64::MAX);
        let mut bytes = [0; Word::LEN];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes[4..].copy_from_slice(&at.to_le_bytes());
        bytes
    }

    fn decode(bytes: [u8; Word::LEN]) -> Option<Word> {
        let (number, at) = bytes.split_first_chunk().expect("it is longer");
        let number = i32::from_le_bytes(*number);
        let pid = Pid::from_raw(number.checked_abs()?)?;
        let target = if number < 0 { Target::Group(pid) } else { Target::Process(pid) };
        let at = Duration::from_nanos(u64::from_le_bytes(at.try_into().ok()?));
        Some(Word { target, at })
    }
}

/// What the clock shows that all processes of this machine share.
fn now() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().unwrap_or_default()
}

/// Until when the session is certain to be alive, as it is known now, by the clock that all
/// processes share.
fn certain_until(client: &Client) -> Duration {
    // The clock first: if this process is paused in between, it is less.
    let now = now();
    let certain_until = client.certain_until() - margin(client);
    now + certain_until.saturating_duration_since(Instant::now().into_std())
}

/// How a process that becomes a command tells its guardian of itself before it does.
#[derive(Debug, clap::Args)]
pub(super) struct Introduction {
    /// The pipe of the guardian
    #[arg(long, requires = "until")]
    guardian: Option<PathBuf>,
    /// Until when it need not be killed, in nanoseconds
    #[arg(long)]
    until: Option<u64>,
}

impl Introduction {
    /// Has the guardian, if there is one, guard this process, or the group that it leads.
    ///
    /// # Errors
    /// If it cannot be told.
    pub(super) fn make(&self) -> io::Result<()> {
        let (Some(guardian), Some(until)) = (&self.guardian, self.until) else { return Ok(()) };
        let own = getpid();
        let target = if getpgrp() == own { Target::Group(own) } else { Target::Process(own) };
        let word = Word { target, at: Duration::from_nanos(until) };
        OpenOptions::new().write(true).open(guardian)?.write_all(&word.encode())
    }
}

/// The guardian, as the process that holds something sees it. It ends when this is dropped.
///
/// What it is told is in its pipe, which outlives it: whoever replaces it knows from its start whom
/// to guard, even if the holder dies before it can say more.
pub(super) struct Guard {
    /// Killed when it is dropped.
    process: Child,
    told: PipeReader,
    tell: Sender,
}

impl Guard {
    /// Starts a guardian that guards nobody yet.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn start() -> anyhow::Result<Guard> {
        let (told, tell) = pipe().context("opening a pipe for the command's guardian")?;
        let tell = Sender::from_owned_fd(tell.into()).context("opening the guardian's pipe")?;
        Ok(Guard { process: start_process(&told)?, told, tell })
    }

    /// The arguments by which a process that is started now [introduces](Introduction) itself.
    pub(super) fn introduction(&self, client: &Client) -> [String; 4] {
        let (holder, pipe) = (std::process::id(), self.tell.as_raw_fd());
        let path = format!("/proc/{holder}/fd/{pipe}");
        let until = certain_until(client).as_nanos().to_string();
        ["--guardian".into(), path, "--until".into(), until]
    }

    /// Goes on telling it until when the session is certain to be alive, and replaces it if it
    /// dies. Ends if there is no other.
    pub(super) async fn keep(&mut self, client: &Client, target: Target) -> anyhow::Error {
        loop {
            if let Err(error) = self.tell(client, target).await {
                return error;
            }
            sleep(client.session_timeout() / 10).await;
        }
    }

    async fn tell(&mut self, client: &Client, target: Target) -> anyhow::Result<()> {
        // It is looked after first, so that what is said now is there for its successor.
        let ended = self.process.try_wait().context("looking after the command's guardian")?;
        let word = Word { target, at: certain_until(client) };
        self.tell.write_all(&word.encode()).await.context("telling the command's guardian")?;
        if ended.is_some() {
            self.process = start_process(&self.told)?;
        }
        Ok(())
    }
}

/// Starts a guardian, in a group of its own: what stops or ends this process's group, like a key of
/// the terminal, is not for it.
fn start_process(told: &PipeReader) -> anyhow::Result<Child> {
    const WHAT: &str = "starting the command's guardian";
    let mut command = Command::new(THIS_PROGRAM);
    command.arg0("conclave").arg("guard-held").process_group(0).kill_on_drop(true);
    command.stdin(told.try_clone().context(WHAT)?).stdout(Stdio::null());
    command.spawn().context(WHAT)
}

/// Is the guardian: kills at the time that it was told last, or when whoever told it is gone.
///
/// # Errors
/// If standard input is not what a guardian has.
pub(in crate::cli) async fn run() -> anyhow::Result<ExitCode> {
    // What ends the holder is passed on to the command, which takes its time to end.
    let _signals = Signals::catch()?;
    let pipe = stdin().as_fd().try_clone_to_owned()?;
    let mut pipe = Receiver::from_owned_fd(pipe).context("only conclave itself runs this")?;
    let mut last = None;
    loop {
        let mut bytes = [0; Word::LEN];
        let left = last.map_or(Duration::MAX, |word: Word| word.at.saturating_sub(now()));
        // All that is in the pipe is read before it is too late, be it that this process was
        // stopped for long.
        let told = timeout(left, unconstrained(pipe.read_exact(&mut bytes))).await;
        match (told, last) {
            // What the command has said of itself may come late.
            (Ok(Ok(_)), _) => {
                last = last.into_iter().chain(Word::decode(bytes)).max_by_key(|word| word.at);
            }
            (_, Some(word)) => {
                if word.target.kill(Signal::KILL).is_ok() {
                    tell("conclave: COMMAND is killed: what it runs under is not held for certain");
                }
                return Ok(ExitCode::SUCCESS);
            }
            (_, None) => return Ok(ExitCode::SUCCESS),
        }
    }
}
