//! A client as a process, which is spoken to line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::spawn;

use crate::{DEADLINE, eventually};

/// A running program; it ends with this value.
pub(crate) struct Program {
    process: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it. What it writes on both of its outputs is read as one.
    pub(crate) fn start(command: &mut Command) -> Program {
        let (reader, writer) = std::io::pipe().unwrap();
        let also = writer.try_clone().unwrap();
        command.stdin(Stdio::piped()).stdout(writer).stderr(also);
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The command holds the pipe's ends for writing until it is given others.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let input = process.stdin.take().expect("it is a pipe");
        let (sender, lines) = channel();
        spawn(move || {
            for line in BufReader::new(reader).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Program { process, input, lines }
    }

    /// Writes a line to the program.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}")
            .unwrap_or_else(|error| panic!("it does not listen: {error}"));
    }

    /// The next line that the program writes, without the space around it; `None` if it has ended.
    /// `at` tells where in the test that is, should nothing come.
    pub(crate) fn hear(&mut self, at: &str) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("{at}: the program says nothing more"),
        }
    }

    /// Waits until the program has ended.
    pub(crate) fn end(&mut self) -> ExitStatus {
        eventually("the program ends", || self.process.try_wait().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
