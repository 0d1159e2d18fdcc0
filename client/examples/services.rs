//! A service with several instances, and a caller who goes to the fastest one that is well.
//!
//! An instance registers itself while it is well, and only then: it looks at its own health, and
//! leaves when it is not. A caller keeps what it was told of the instances at hand, notes how fast
//! each answers, and asks another one when one fails; so it does not notice that an instance dies,
//! long before its session is over.
//!
//! Start an ensemble with `conclave dev`, then this, which runs three instances and a caller in one
//! process:
//!
//! ```text
//! cargo run -p conclave-client --example services -- demo
//! ```
//!
//! Or each of them in a terminal of its own; kill them, freeze them, let them be ill:
//!
//! ```text
//! cargo run -p conclave-client --example services -- serve a 127.0.0.1:9201 --delay-ms 5
//! cargo run -p conclave-client --example services -- serve b 127.0.0.1:9202 --delay-ms 20
//! cargo run -p conclave-client --example services -- call
//! echo ILL | nc 127.0.0.1 9201        # and WELL
//! ```

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use conclave_client::Client;
use conclave_client::recipes::discovery::{Discovery, DownPolicy, Instance, Provider, Strategy};
use conclave_client::recipes::{self, members::KeptNode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

const SERVICE: &str = "greeter";
/// How long after its death an instance is found no more, by those who have not called it.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a caller waits for an answer before it asks another instance.
const PATIENCE: Duration = Duration::from_millis(250);
/// A caller gives up after so many instances have failed it.
const ATTEMPTS: usize = 10;
/// Between two calls.
const PAUSE: Duration = Duration::from_millis(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    match given[..] {
        ["serve", id, address] => {
            serve(&listen(address).await?, Instance::new(id, address), Duration::ZERO).await
        }
        ["serve", id, address, "--delay-ms", delay] => {
            let delay = Duration::from_millis(delay.parse()?);
            serve(&listen(address).await?, Instance::new(id, address), delay).await
        }
        ["call"] => call(None).await,
        ["call", "--count", count] => call(Some(count.parse()?)).await,
        ["demo"] => demo().await,
        _ => bail!("say: serve ID HOST:PORT [--delay-ms N], call [--count N], or demo"),
    }
}

async fn connect() -> Result<Client> {
    let servers = std::env::var("CONCLAVE_SERVERS")
        .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into());
    let builder = Client::builder().servers(&servers).session_timeout(SESSION_TIMEOUT);
    builder.connect().await.with_context(|| format!("connecting to {servers}"))
}

/// Three instances, of which one is ill after a while, and their caller.
async fn demo() -> Result<()> {
    let anywhere = || listen("127.0.0.1:0");
    let (a, b, c) = (anywhere().await?, anywhere().await?, anywhere().await?);
    let address_of_a = a.local_addr()?.to_string();
    let instance = |id, listener: TcpListener, delay_ms| async move {
        let instance = Instance::new(id, listener.local_addr()?.to_string());
        serve(&listener, instance, Duration::from_millis(delay_ms)).await
    };
    let falls_ill = async {
        sleep(Duration::from_secs(3)).await;
        println!("a falls ill");
        ask(&address_of_a, "ILL").await?;
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = instance("a", a, 2) => ended,
        ended = instance("b", b, 10) => ended,
        ended = instance("c", c, 40) => ended,
        ended = falls_ill => ended,
        ended = call(Some(500)) => ended,
    }
}

// ---- An instance.

async fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("at {address}"))
}

/// Answers, and is registered while it is well.
async fn serve(listener: &TcpListener, instance: Instance, delay: Duration) -> Result<()> {
    let (id, health) = (instance.id.clone(), watch::Sender::new(true));
    tokio::select! {
        () = answer_all(listener, &id, delay, &health) => Ok(()),
        ended = stay_registered(instance, health.subscribe()) => ended,
    }
}

/// Registers whenever it is well, in a new session if one has ended.
async fn stay_registered(instance: Instance, mut health: watch::Receiver<bool>) -> Result<()> {
    loop {
        let client = connect().await?;
        let ended = tokio::select! {
            ended = register_while_well(&client, &instance, &mut health) => ended,
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                client.close().await?;
                return Ok(());
            }
        };
        match ended {
            Err(error) if error.is_final() => println!("{}: {error}; once more", instance.id),
            ended => return ended.context("could not go on"),
        }
    }
}

async fn register_while_well(
    client: &Client,
    instance: &Instance,
    health: &mut watch::Receiver<bool>,
) -> Result<(), recipes::Error> {
    let discovery = Discovery::new(client, "/services")?;
    loop {
        if !until(health, true).await {
            return Ok(());
        }
        // A session of an instance that was here before may still have to expire.
        let registering = discovery.registering(SERVICE, instance)?.wait(SESSION_TIMEOUT * 2);
        let registered: KeptNode = registering.create().await?;
        println!("{} is registered at {}", instance.id, instance.address);
        tokio::select! {
            why = registered.ended() => return Err(why),
            _ = until(health, false) => registered.leave().await?,
        }
        println!("{} is not well, and has left", instance.id);
    }
}

/// False if nobody will say any more how it is.
async fn until(health: &mut watch::Receiver<bool>, wanted: bool) -> bool {
    health.wait_for(|&is_well| is_well == wanted).await.is_ok()
}

async fn answer_all(
    listener: &TcpListener,
    id: &str,
    delay: Duration,
    health: &watch::Sender<bool>,
) {
    let mut callers = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                drop(callers.spawn(answer(socket, id.to_owned(), delay, health.clone())));
            }
            Err(error) => {
                println!("{id} cannot accept: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(
    mut socket: TcpStream,
    id: String,
    delay: Duration,
    health: watch::Sender<bool>,
) -> std::io::Result<()> {
    let (reading, mut writing) = socket.split();
    let mut lines = BufReader::new(reading).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match line.as_str() {
            "ILL" | "WELL" => {
                health.send_replace(line == "WELL");
                format!("{id} is {}", line.to_lowercase())
            }
            name => {
                sleep(delay).await;
                format!("hello {name}, this is {id}")
            }
        };
        writing.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

// ---- A caller.

/// Calls again and again, and says who answered whenever that changes.
async fn call(count: Option<usize>) -> Result<()> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut calls = 0;
    let mut last = String::new();
    while count.is_none_or(|count| calls < count) {
        let client = connect().await?;
        let discovery = Discovery::new(&client, "/services")?;
        let provider = discovery.provider(SERVICE, Strategy::LeastLatency).await?;
        // Who fails is asked again soon, since a dead one is gone when its session is.
        let policy = DownPolicy { failures: 1, pause: SESSION_TIMEOUT };
        let provider = provider.down_policy(policy);
        while count.is_none_or(|count| calls < count) {
            let (instance, took) = match call_one(&provider).await {
                Ok(answered) => answered,
                Err(error) if error.is_final() => {
                    println!("{error}; once more");
                    break;
                }
                Err(error) => return Err(error).context("nobody answers"),
            };
            calls += 1;
            *answers.entry(instance.id.clone()).or_default() += 1;
            if instance.id != last {
                println!("{} answered call {calls} in {} ms", instance.id, took.as_millis());
                last = instance.id;
            }
            sleep(PAUSE).await;
        }
        client.close().await.ok();
    }
    println!("{calls} calls were answered by {answers:?}");
    Ok(())
}

/// One call, by as many instances as it takes.
async fn call_one(provider: &Provider) -> Result<(Instance, Duration), recipes::Error> {
    let mut attempt = 0;
    loop {
        let instance = provider.wait(Duration::from_secs(30)).await?;
        let began = Instant::now();
        match within_patience(ask(&instance.address, "caller")).await {
            Ok(_) => {
                let took = began.elapsed();
                provider.succeeded(&instance.id, took);
                return Ok((instance, took));
            }
            Err(error) => {
                provider.failed(&instance.id);
                println!("{} failed: {error:#}; asking another", instance.id);
                attempt += 1;
                if attempt == ATTEMPTS {
                    let path = provider.cache().path().clone();
                    return Err(recipes::Error::Empty { path, why: "all have failed".into() });
                }
            }
        }
    }
}

async fn within_patience<T>(asking: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, asking).await.context("no answer in time")?
}

/// One request on a connection of its own.
async fn ask(address: &str, request: &str) -> Result<String> {
    let mut connection = BufReader::new(TcpStream::connect(address).await?);
    connection.write_all(format!("{request}\n").as_bytes()).await?;
    let mut answer = String::new();
    if connection.read_line(&mut answer).await? == 0 {
        bail!("{address} hung up");
    }
    Ok(answer.trim_end().to_owned())
}
