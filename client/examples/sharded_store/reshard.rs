//! Moving keys from the shards that serve to those that are to serve.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use conclave_client::recipes::Mutex;
use conclave_client::recipes::config::Revision;
use conclave_client::{Client, ErrorCode};

use crate::layout::{HandedOver, LAYER, Shards, moves, setting};

pub(crate) async fn reshard(client: &Client, shards: &[&str]) -> Result<()> {
    ensure!(!shards.is_empty(), "say which shards are to serve");
    let next: Vec<String> = shards.iter().map(|&shard| shard.to_owned()).collect();
    let mut turn = Mutex::new(client, "/sharded/reshard")?;
    let turn = turn.lock().await?;
    let lost = turn.lost();
    let work = async {
        let setting = setting(client)?;
        loop {
            let Some(current) = setting.get(&LAYER).await? else {
                let first = Shards { serving: next.clone(), ..Shards::default() };
                setting.compare_and_set(&LAYER, Revision::NONE, &first).await?;
                println!("{} serve", next.join(", "));
                return Ok(());
            };
            let on = current.revision;
            let Some(shards) = current.value else { bail!("the setting was removed by hand") };
            if shards.next.is_some() {
                // This one's, or that of one that died in the middle.
                finish(client, on, shards).await?;
            } else if shards.serving == next {
                return Ok(());
            } else {
                let moving = Shards { next: Some(next.clone()), ..shards };
                setting.compare_and_set(&LAYER, on, &moving).await?;
            }
        }
    };
    tokio::select! {
        done = work => done?,
        loss = lost => bail!("stopped in the middle: {loss}; say it again"),
    }
    Ok(turn.release().await?)
}

/// Waits until all have handed over what moves, and lets the next shards serve.
async fn finish(client: &Client, on: Revision, shards: Shards) -> Result<()> {
    let Some(serving) = shards.next else { return Ok(()) };
    let path = moves(on.0);
    let mut handed: BTreeMap<String, HandedOver> = BTreeMap::new();
    for part in ["/sharded/moves", &path] {
        match client.create(part, "").await {
            Err(error) if error.code() != Some(ErrorCode::NodeExists) => return Err(error.into()),
            Ok(_) | Err(_) => {}
        }
    }
    while !shards.serving.iter().all(|shard| handed.contains_key(shard)) {
        let (there, mut watch) = client.children_and_watch(&path).await?;
        for shard in there {
            let node = client.get(format!("{path}/{shard}")).await?;
            handed.insert(shard, serde_json::from_slice(node.bytes())?);
        }
        if handed.len() < shards.serving.len() {
            watch.next().await.transpose()?;
        }
    }

    let mut ready = shards.ready;
    let (mut all, mut moved) = (0, BTreeMap::<String, usize>::new());
    for over in handed.values() {
        all += over.of;
        for (shard, (count, last)) in &over.to {
            *moved.entry(shard.clone()).or_default() += count;
            let ready = ready.entry(shard.clone()).or_insert(0);
            *ready = last.max(ready).to_owned();
        }
    }
    let serve = Shards { serving: serving.clone(), next: None, ready };
    setting(client)?.compare_and_set(&LAYER, on, &serve).await?;
    for (shard, count) in moved {
        println!("{count} of {all} keys have moved to {shard}");
    }
    println!("{} serve", serving.join(", "));
    client.delete_recursive(&path).await?;
    Ok(())
}
