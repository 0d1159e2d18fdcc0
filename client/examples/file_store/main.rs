//! A file store over several machines, whose names and locks live in Conclave.
//!
//! A storage keeps the contents of files on its disk, and knows nothing of who may write. Conclave
//! knows which files there are, where each is, and who writes it at the moment. Every write to a
//! storage carries the fencing token of the lock under which it is made; the storage keeps the
//! greatest token of each file beside its contents, and refuses less. So a writer that was paused
//! for so long that its lock went to another one changes nothing when it wakes up.
//!
//! Start an ensemble with `conclave dev`, then this, which runs two storages and several writers of
//! one file in one process:
//!
//! ```text
//! cargo run -p conclave-client --example file_store -- demo
//! ```
//!
//! Or, in two terminals:
//!
//! ```text
//! cargo run -p conclave-client --example file_store -- storage s1 /tmp/s1 127.0.0.1:9301
//! cargo run -p conclave-client --example file_store -- storage s2 /tmp/s2 127.0.0.1:9302
//! ```
//!
//! and in a third, or in many at once:
//!
//! ```text
//! echo hello | cargo run -p conclave-client --example file_store -- create greeting
//! cargo run -p conclave-client --example file_store -- append greeting 'and a line' 'and another'
//! cargo run -p conclave-client --example file_store -- read greeting
//! echo bye | cargo run -p conclave-client --example file_store -- write greeting
//! cargo run -p conclave-client --example file_store -- list
//! cargo run -p conclave-client --example file_store -- delete greeting
//! ```
//!
//! `create` and `write` read their input under the lock: type slowly, freeze one with `kill -STOP`,
//! write the same file from elsewhere, and wake it up with `kill -CONT`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to a person")]

mod files;
mod storage;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use conclave_client::Client;
use conclave_client::recipes::discovery::Instance;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use files::Files;

/// How long after its death others may write what a writer had locked.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    if let ["storage", id, dir, address] = given[..] {
        let listener = TcpListener::bind(address).await.with_context(|| format!("at {address}"))?;
        return storage::serve(Instance::new(id, address), dir.into(), listener).await;
    }
    if given == ["demo"] {
        return demo().await;
    }
    run(&given).await
}

async fn run(given: &[&str]) -> Result<()> {
    let client = connect().await?;
    let outcome = work(&Files::new(&client).await?, given).await;
    // A session that is over has been reason enough to fail before.
    let closed = client.close().await;
    outcome?;
    Ok(closed?)
}

/// Two storages, and three writers of one file at once.
async fn demo() -> Result<()> {
    // What another ensemble's tokens were, these storages must not know.
    let dir = std::env::temp_dir().join(format!("file_store-{}", std::process::id()));
    let storage = async |id| {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let instance = Instance::new(id, listener.local_addr()?.to_string());
        storage::serve(instance, dir.join(id), listener).await
    };
    let story = async {
        let client = connect().await?;
        let files = Files::new(&client).await?;
        files.create("story", async || Ok(b"once upon a time\n".to_vec())).await?;
        client.close().await?;
        tokio::try_join!(
            run(&["append", "story", "a writer came", "and wrote"]),
            run(&["append", "story", "another came", "and wrote as well"]),
            run(&["append", "story", "and a third", "who wrote the most", "of all of them"]),
        )?;
        run(&["list"]).await?;
        run(&["read", "story"]).await?;
        run(&["delete", "story"]).await
    };
    tokio::select! {
        ended = storage("storage-1") => ended,
        ended = storage("storage-2") => ended,
        ended = story => ended,
    }
}

async fn work(files: &Files, given: &[&str]) -> Result<()> {
    match *given {
        ["create", name] => files.create(name, read_input).await,
        ["write", name] => files.write(name, read_input).await,
        ["append", name, ref lines @ ..] => {
            for line in lines {
                files.append(name, line).await?;
            }
            Ok(())
        }
        ["read", name] => {
            let contents = files.read(name).await?;
            tokio::io::stdout().write_all(&contents).await?;
            Ok(tokio::io::stdout().flush().await?)
        }
        ["delete", name] => files.delete(name).await,
        ["list"] => {
            for (name, file) in files.list().await? {
                println!("{name}  {} bytes at {}", file.length, file.storage);
            }
            Ok(())
        }
        _ => bail!(
            "say: storage ID DIR HOST:PORT, create NAME, write NAME, append NAME LINE.., read NAME, \
             delete NAME, list, or demo"
        ),
    }
}

async fn read_input() -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    tokio::io::stdin().read_to_end(&mut contents).await.context("reading standard input")?;
    Ok(contents)
}

async fn connect() -> Result<Client> {
    let servers = std::env::var("CONCLAVE_SERVERS")
        .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into());
    let builder = Client::builder().servers(&servers).session_timeout(SESSION_TIMEOUT);
    builder.connect().await.with_context(|| format!("connecting to {servers}"))
}
