//! A key-value store in shards, each of which is a set of replicas.
//!
//! A consistent-hash ring says which shard has a key. The replicas of a shard follow one operation
//! log; the one that is elected appends to it, and any of them answers reads. Replicas come and go
//! as they like. Shards come and go with `reshard`, which moves the keys that have another shard in
//! the new ring, and no others, while the store goes on serving.
//!
//! Start an ensemble with `conclave dev`, then this, which runs three shards of two replicas, fills
//! them, and moves keys:
//!
//! ```text
//! cargo run -p conclave-client --example sharded_store -- demo
//! ```
//!
//! Or each replica in a terminal of its own:
//!
//! ```text
//! cargo run -p conclave-client --example sharded_store -- replica a 127.0.0.1:9401
//! cargo run -p conclave-client --example sharded_store -- replica a 127.0.0.1:9402
//! cargo run -p conclave-client --example sharded_store -- replica b 127.0.0.1:9403
//! cargo run -p conclave-client --example sharded_store -- reshard a b
//! cargo run -p conclave-client --example sharded_store -- fill 1000
//! cargo run -p conclave-client --example sharded_store -- set colour green
//! cargo run -p conclave-client --example sharded_store -- get colour
//! cargo run -p conclave-client --example sharded_store -- status
//! ```
//!
//! # How keys move
//!
//! The setting `shards` says which shards serve, and, while keys move, which are to serve next.
//!
//! 1. `reshard` writes what is to serve next. From when it sees that, a primary refuses writes of
//!    keys that are going to move; whoever asked tries again.
//! 2. The primary makes sure that it still leads. So whoever leads its shard later knows of the move,
//!    too, and what it has of those keys is final. It sends them to their new shards.
//! 3. When all have, `reshard` writes that the next shards serve, and how far a replica must have
//!    followed its log to have what was moved to it.
//! 4. Whoever has keys that are not its own any more drops them.
//!
//! Each step can be done again: by the next primary, or by `reshard` itself.

#![allow(clippy::print_stdout, reason = "a program that talks to a person")]

mod layout;
mod replica;
mod reshard;
mod router;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use conclave_client::Client;
use tokio::net::TcpListener;

use router::Router;

/// How long after its death a primary has a successor.
const SESSION_TIMEOUT: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    match given[..] {
        ["replica", shard, address] => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("at {address}"))?;
            return replica::serve(shard, address, listener).await;
        }
        ["demo"] => return demo().await,
        _ => {}
    }
    run(&given).await
}

/// What somebody does who uses the store.
async fn run(given: &[&str]) -> Result<()> {
    let client = connect().await?;
    let outcome = match *given {
        ["reshard", ref shards @ ..] => reshard::reshard(&client, shards).await,
        ["set", key, value] => Router::new(&client).await?.set(key, value).await,
        ["get", key] => get(&mut Router::new(&client).await?, key).await,
        ["fill", count] => fill(&mut Router::new(&client).await?, count.parse()?).await,
        ["check", count] => check(&mut Router::new(&client).await?, count.parse()?).await,
        ["status"] => Router::new(&client).await?.print().await,
        _ => Err(anyhow::anyhow!(
            "say: replica SHARD HOST:PORT, reshard SHARD.., set KEY VALUE, get KEY, fill COUNT, \
             check COUNT, status, or demo"
        )),
    };
    // A session that is over has been reason enough to fail before.
    let closed = client.close().await;
    outcome?;
    Ok(closed?)
}

async fn connect() -> Result<Client> {
    let servers = std::env::var("CONCLAVE_SERVERS")
        .unwrap_or_else(|_| "127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420".into());
    let builder = Client::builder().servers(&servers).session_timeout(SESSION_TIMEOUT);
    builder.connect().await.with_context(|| format!("connecting to {servers}"))
}

async fn get(router: &mut Router, key: &str) -> Result<()> {
    match router.get(key).await? {
        Some(value) => println!("{value}"),
        None => bail!("{key} is not there"),
    }
    Ok(())
}

/// Writes numbered keys.
async fn fill(router: &mut Router, count: usize) -> Result<()> {
    for number in 0..count {
        router.set(&format!("key-{number}"), &format!("value {number}")).await?;
    }
    println!("{count} keys are written");
    Ok(())
}

/// Reads the keys that were written by `fill`, and fails if one of them is lost.
async fn check(router: &mut Router, count: usize) -> Result<()> {
    for number in 0..count {
        let value = router.get(&format!("key-{number}")).await?;
        ensure!(value == Some(format!("value {number}")), "key-{number} is lost: {value:?}");
    }
    println!("{count} keys are there");
    Ok(())
}

/// Two shards, which become three, which become two.
async fn demo() -> Result<()> {
    let replica = |shard| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        replica::serve(shard, &listener.local_addr()?.to_string(), listener).await
    };
    let story = async {
        run(&["reshard", "a", "b"]).await?;
        run(&["fill", "1000"]).await?;
        run(&["reshard", "a", "b", "c"]).await?;
        run(&["check", "1000"]).await?;
        run(&["reshard", "b", "c"]).await?;
        run(&["check", "1000"]).await?;
        run(&["status"]).await
    };
    tokio::select! {
        ended = replica("a") => ended,
        ended = replica("a") => ended,
        ended = replica("b") => ended,
        ended = replica("b") => ended,
        ended = replica("c") => ended,
        ended = replica("c") => ended,
        ended = story => ended,
    }
}
