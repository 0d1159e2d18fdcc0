//! The contests of other libraries' locks, each in a program of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use super::super::{held, java};
use super::{Args, Library, Outcome};

/// What a contest may take beside its own time: a program starts and opens sessions.
const PREPARATION: Duration = Duration::from_secs(60);
/// The jars that Curator needs beside those of ZooKeeper.
const CURATOR: [&str; 4] = ["curator-client", "curator-framework", "curator-recipes", "guava"];

/// The programs, ready to run.
pub(super) struct Foreign {
    dir: PathBuf,
    class_path: String,
}

impl Foreign {
    /// Writes and compiles what the contests need.
    ///
    /// # Errors
    /// If a file cannot be written, or what a library needs is not installed.
    pub(super) async fn prepare(args: &Args, home: &Path) -> anyhow::Result<Foreign> {
        let dir = home.join("foreign");
        fs::create_dir_all(&dir)?;
        let mut foreign = Foreign { dir, class_path: String::new() };
        let uses = |some: [Library; 2]| args.libraries.iter().any(|library| some.contains(library));
        if uses([Library::Kazoo, Library::KazooOnConclave]) {
            fs::write(foreign.python_file(), include_str!("lock_contest.py"))?;
            let mut import = Command::new(&args.python);
            let imported = import.args(["-c", "import kazoo"]).output().await;
            let has_kazoo = imported.is_ok_and(|output| output.status.success());
            ensure!(
                has_kazoo,
                "{} has no kazoo: name a Python that has with --python",
                args.python.display()
            );
        }
        if uses([Library::Curator, Library::CuratorOnConclave]) {
            foreign.compile(args).await?;
        }
        Ok(foreign)
    }

    async fn compile(&mut self, args: &Args) -> anyhow::Result<()> {
        let jars = java::class_path(args.jars.as_deref(), &CURATOR)?;
        self.class_path = format!("{}:{jars}", self.dir.display());
        let source = self.dir.join("LockContest.java");
        fs::write(&source, include_str!("LockContest.java"))?;
        let mut compiler = Command::new("javac");
        compiler.args(["-cp", &jars, "-d"]).arg(&self.dir).arg(&source);
        let output = compiler.output().await;
        let output = output.context("starting javac (Debian: default-jdk-headless)")?;
        ensure!(
            output.status.success(),
            "the contest for Curator does not compile; are its jars installed (Debian: \
             libcurator-recipes-java)?\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn python_file(&self) -> PathBuf {
        self.dir.join("lock_contest.py")
    }

    /// Runs a contest of one of the libraries that it was prepared for.
    pub(super) async fn contend(
        &self,
        args: &Args,
        library: Library,
        servers: &[String],
        path: &str,
    ) -> anyhow::Result<Outcome> {
        let mut program = if matches!(library, Library::Kazoo | Library::KazooOnConclave) {
            let mut python = held(&args.python)?;
            python.arg(self.python_file());
            python
        } else {
            let mut java = held("java")?;
            java.args(["-Xmx1000m", "-cp", &self.class_path, "LockContest"]);
            java
        };
        let numbers = [args.contenders, args.warm_up, args.seconds].map(|n| n.to_string());
        program.arg(servers.join(",")).arg(path).args(numbers);
        program.stdin(Stdio::null());
        let limit = PREPARATION + Duration::from_secs(args.warm_up + args.seconds);
        let output =
            timeout(limit, program.output()).await.context("it does not end in time")??;
        let said = String::from_utf8_lossy(&output.stdout);
        let outcome = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
        outcome.filter(|_| output.status.success()).with_context(|| {
            format!("{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr))
        })
    }
}
