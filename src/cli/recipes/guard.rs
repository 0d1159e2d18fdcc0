//! The guardian of a command that runs while something is held: it ends the command in time when
//! the process that holds it cannot.

use std::io::{self, stdin};
use std::os::fd::AsFd as _;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use conclave_client::Client;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStdin, Command};
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

/// The guardian, as the process that holds something sees it. It ends when this is dropped.
pub(super) struct Guard {
    /// Killed when it is dropped.
    _process: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Starts a guardian, in a group of its own: what stops or ends this process's group, like a
    /// key of the terminal, is not for it.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn start() -> anyhow::Result<Guard> {
        let mut command = Command::new(THIS_PROGRAM);
        command.arg0("conclave").arg("guard-held").process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut process = command.spawn().context("starting the command's guardian")?;
        let pipe = process.stdin.take().context("its standard input is a pipe")?;
        Ok(Guard { _process: process, pipe })
    }

    /// Tells it until when the session is certain to be alive, as it is known now.
    ///
    /// # Errors
    /// If it is gone.
    pub(super) async fn tell(&mut self, client: &Client, target: Target) -> io::Result<()> {
        // The clock first: if this process is paused in between, the guardian is told less.
        let now = now();
        let certain_until = client.certain_until() - margin(client);
        let left = certain_until.saturating_duration_since(Instant::now().into_std());
        self.pipe.write_all(&Word { target, at: now + left }.encode()).await
    }

    /// Goes on telling it, and replaces it if it dies. Ends if there is no other.
    pub(super) async fn keep(&mut self, client: &Client, target: Target) -> anyhow::Error {
        loop {
            if self.tell(client, target).await.is_err() {
                match Guard::start() {
                    Ok(guard) => *self = guard,
                    Err(error) => return error,
                }
                continue;
            }
            sleep(client.session_timeout() / 10).await;
        }
    }
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
        let told = timeout(left, pipe.read_exact(&mut bytes)).await;
        match (told, last) {
            (Ok(Ok(_)), _) => last = Word::decode(bytes).or(last),
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
