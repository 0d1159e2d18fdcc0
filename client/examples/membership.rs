//! A member of a group, as an application would write it: it registers itself under a name, watches
//! who else is there, reads the group's configuration and follows its changes.
//!
//! Start an ensemble with `conclave dev`, then, in one terminal for each member:
//!
//! ```text
//! cargo run -p conclave-client --example membership -- --name a
//! ```
//!
//! Then change the configuration, or kill the leader, and see what the members say:
//!
//! ```text
//! conclave set /membership/config 'colour = green'
//! ```

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::time::Duration;

use anyhow::{Context, Result, bail};
use conclave_client::{
    Client, Error, ErrorCode, EventKind, State, States, Watch, WatchItem, WatchKind,
};
use tokio::time::Instant;

/// What the command line says.
struct Args {
    servers: String,
    name: String,
    group: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse()?;
    loop {
        let client = connect(&args).await?;
        tokio::select! {
            outcome = take_part(&client, &args.name) => match outcome {
                // The servers have forgotten this member: begin again with a new session.
                Err(Error::SessionExpired { .. }) => say("the session has expired; once more"),
                other => return other.context("could not go on"),
            },
            () = narrate(client.states(), &client) => {}
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("cannot wait for ctrl-c")?;
                say("leaving the group");
                client.close().await?;
                return Ok(());
            }
        }
    }
}

async fn connect(args: &Args) -> Result<Client> {
    let client = Client::builder()
        .servers(&args.servers)
        .session_timeout(Duration::from_secs(6))
        .chroot(&args.group)
        .connect()
        .await?;
    let server = client.server().context("a connected client has a server")?;
    say(&format!("session {} is open at server {server}", client.session()));
    Ok(client)
}

/// Does what a member does; comes back only with an error.
async fn take_part(client: &Client, name: &str) -> Result<(), Error> {
    // The root of the client's paths is the group: the servers do not have it yet the first time.
    for (path, data) in [("/", ""), ("/members", ""), ("/config", "colour = blue")] {
        create_if_missing(client, path, data).await?;
    }
    register(client, name).await?;

    // The watch comes first, then the reading: whatever changes from here on is reported.
    let mut watch = client.watch("/", WatchKind::PersistentRecursive).with_value().await?;
    show_members(client).await?;
    show_config(&client.get("/config").await?.data);
    follow(client, &mut watch).await
}

async fn follow(client: &Client, watch: &mut Watch) -> Result<(), Error> {
    while let Some(item) = watch.next().await.transpose()? {
        match item {
            WatchItem::Event { path, kind: EventKind::DataChanged, value, .. }
                if path.as_str() == "/config" =>
            {
                show_config(&value);
            }
            WatchItem::Event { path, .. } if path.as_str().starts_with("/members/") => {
                show_members(client).await?;
            }
            WatchItem::Event { .. } => {}
            WatchItem::Gap { .. } => {
                show_members(client).await?;
                show_config(&client.get("/config").await?.data);
            }
        }
    }
    Ok(())
}

/// Registers this member for as long as its session lives.
async fn register(client: &Client, name: &str) -> Result<(), Error> {
    let path = format!("/members/{name}");
    loop {
        match client.create(&path, std::process::id().to_string()).ephemeral().await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(ErrorCode::NodeExists) => {
                let (taken, mut gone) = client.exists_and_watch(&path).await?;
                if taken.is_some() {
                    say(&format!("somebody else is {name}; waiting until they are gone"));
                    gone.next().await.transpose()?;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

async fn create_if_missing(client: &Client, path: &str, data: &'static str) -> Result<(), Error> {
    match client.create(path, data).await {
        Err(error) if error.code() != Some(ErrorCode::NodeExists) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn show_members(client: &Client) -> Result<(), Error> {
    let members = client.children("/members").await?;
    say(&format!("members: {}", members.join(", ")));
    Ok(())
}

fn show_config(data: &Option<bytes::Bytes>) {
    let text = String::from_utf8_lossy(data.as_deref().unwrap_or_default());
    say(&format!("configuration: {text}"));
}

/// Says how the session is doing, until it is over.
async fn narrate(mut states: States, client: &Client) {
    let mut lost = Instant::now();
    while let Some(state) = states.next().await {
        match state {
            State::Connected => {}
            State::Suspended => {
                lost = Instant::now();
                say("the server is gone; looking for another one");
            }
            State::Resumed => {
                let pause = lost.elapsed().as_millis();
                let server = client.server().map_or("?".into(), |server| server.to_string());
                say(&format!("at server {server} after {pause} ms; nothing is lost"));
            }
            State::Expired | State::Closed => {}
        }
    }
    // What the session's end means is said by whoever was waiting for it.
    std::future::pending().await
}

fn say(what: &str) {
    println!("{what}");
}

impl Args {
    fn parse() -> Result<Args> {
        let mut servers = std::env::var("CONCLAVE_SERVERS").ok();
        let mut name = None;
        let mut group = String::from("/membership");
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--servers" => servers = Some(value),
                "--name" => name = Some(value),
                "--group" => group = value,
                _ => bail!("{word} is not known: --servers LIST --name NAME [--group PATH]"),
            }
        }
        Ok(Args {
            servers: servers
                .unwrap_or_else(|| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into()),
            name: name.context("under which name? --name a")?,
            group,
        })
    }
}
