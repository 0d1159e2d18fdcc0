//! The configuration registry.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use conclave_client::recipes::Error;
use conclave_client::recipes::config::{
    Change, Follower, Kind, Layer, Live, LiveItem, Origin, Overlay, Place, Registry, Revision,
    SETTING_BYTES, Schema, Secret, Setting,
};
use conclave_client::{Acl, Client, ErrorCode, Perms};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::chaos::{Dice, Wire, rounds, strike};
use crate::harness::{Cluster, DEADLINE};

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Pool {
    size: u32,
    password: Secret<String>,
}

fn pool(size: u32) -> Pool {
    Pool { size, password: Secret::new(format!("hunter{size}")) }
}

/// The next value, with what is told before it.
async fn value<T>(live: &mut Live<T>) -> Option<T>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    loop {
        match timeout(DEADLINE, live.next()).await.expect("a value").unwrap().unwrap() {
            LiveItem::Value(value) => return value.map(|value| value.value),
            LiveItem::Gap => {}
        }
    }
}

/// Where the setting `limit` has its value, for everybody.
const LIMIT: &str = "/config/live/default/values/limit";

/// The setting `limit`, which is 1, who follows it, and what its node holds.
async fn limit_of_one(client: &Client) -> (Setting<u32>, Follower, Live<u32>, Bytes) {
    let registry = Registry::new(client, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    setting.set(&Layer::Default, &1).await.unwrap();
    let follower = registry.follow(Place::new()).await.unwrap();
    let mut live = follower.live(&setting).unwrap();
    assert_eq!(value(&mut live).await, Some(1));
    let data = client.get(LIMIT).await.unwrap().data.unwrap();
    (setting, follower, live, data)
}

#[tokio::test]
async fn values_are_checked_kept_in_layers_and_can_be_taken_back() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap().author("ann").keep(4);
    let setting = registry
        .setting::<Pool>("db.pool")
        .unwrap()
        .validate(|pool| if pool.size > 0 { Ok(()) } else { Err("size is 0".into()) });
    assert!(matches!(registry.setting::<Pool>("db/pool"), Err(Error::Name { .. })));
    assert!(matches!(Layer::service(""), Err(Error::Name { .. })));
    assert!(matches!(Registry::new(&client, "/"), Err(Error::Config(_))));

    let default = Layer::Default;
    let billing = Layer::service("billing").unwrap();
    let place = Place::new().environment("prod").unwrap().service("billing").unwrap();
    let follower = registry.follow(place).await.unwrap();
    let mut live = follower.live(&setting).unwrap();
    assert_eq!(value(&mut live).await, None);

    let first = setting.set(&default, &pool(1)).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(1)));
    let refused = setting.set(&default, &pool(0)).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the value of /config/live/default/values/db.pool is not valid: size is 0"
    );
    let stale = setting.compare_and_set(&default, Revision::NONE, &pool(9)).await;
    assert!(matches!(stale, Err(Error::Conflict { .. })), "{stale:?}");
    let second =
        setting.clone().note("more").compare_and_set(&default, first, &pool(2)).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(2)));
    setting.edit(&billing, |pool| pool.is_none().then(|| self::pool(7))).await.unwrap().unwrap();
    assert_eq!(value(&mut live).await, Some(pool(7)));
    setting.set(&default, &pool(3)).await.unwrap();
    setting.remove(&billing, None).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(3)));

    let back = setting.rollback(&default, first).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(1)));
    let seen = setting.get(&default).await.unwrap().unwrap();
    assert_eq!(
        (seen.revision, seen.change, seen.author.as_str()),
        (back, Change::Rollback { to: 1 }, "ann")
    );
    let history = setting.history(&default).await.unwrap();
    let notes: Vec<_> = history.iter().map(|past| past.as_ref().unwrap().note.as_str()).collect();
    assert_eq!(notes, ["", "", "more", ""]);
    let text = format!("{history:?}");
    assert!(!text.contains("hunter"), "{text}");

    // Only four are kept.
    setting.set(&default, &pool(5)).await.unwrap();
    assert!(matches!(setting.rollback(&default, first).await, Err(Error::Gone { .. })));
    assert_eq!(setting.revision(&default, second).await.unwrap().value, Some(pool(2)));

    // Values up to the limit.
    let large = registry.setting::<String>("large").unwrap();
    large.set(&default, &"x".repeat(SETTING_BYTES - 2)).await.unwrap();
    let too_large = large.set(&default, &"x".repeat(SETTING_BYTES - 1)).await;
    assert!(matches!(too_large, Err(Error::Invalid { .. })));
    assert_eq!(registry.settings(&default).await.unwrap(), ["db.pool", "large"]);
    assert_eq!(registry.layers().await.unwrap(), [default, billing]);
}

#[tokio::test]
async fn a_stored_schema_holds_every_writer_to_it_and_hides_secrets() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let any = registry.setting::<Value>("db").unwrap();
    let text = Schema { kind: Some(Kind::String), secret: true, ..Schema::default() };
    let schema = Schema {
        kind: Some(Kind::Object),
        properties: [("password".to_owned(), text)].into(),
        required: ["password".to_owned()].into(),
        ..Schema::default()
    };
    any.set_schema(&schema).await.unwrap();
    assert_eq!(any.schema().await.unwrap(), Some(schema));
    let layer = Layer::Default;
    let refused = any.set(&layer, &json!({"password": 12345})).await.unwrap_err();
    assert!(refused.to_string().ends_with("/password is no string"), "{refused}");
    assert!(any.stage(&layer, &["canary"], &json!([])).await.is_err());
    any.set(&layer, &json!({"password": "hunter2", "port": 1})).await.unwrap();
    any.set(&layer, &json!({"password": "hunter3", "port": 2})).await.unwrap();
    let differences = any.diff(&layer, Revision(1), Revision(2)).await.unwrap();
    let shown: Vec<_> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(shown, [r#"/password: "***" → "***""#, "/port: 1 → 2"]);
    let typed = registry.setting::<Pool>("db").unwrap().secret();
    let error = typed.get(&layer).await.unwrap_err();
    assert!(!error.to_string().contains("hunter"), "{error}");
}

#[tokio::test]
async fn no_error_shows_what_is_stored() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Numbers {
        password: u32,
    }
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let layer = Layer::Default;
    registry
        .setting::<Value>("db")
        .unwrap()
        .set(&layer, &json!({"password": "hunter2"}))
        .await
        .unwrap();
    // The field is secret by the schema alone, of which a reader of another type knows nothing.
    let typed = registry.setting::<Numbers>("db").unwrap();
    let follower = registry.follow(Place::new()).await.unwrap();
    for error in [typed.get(&layer).await.unwrap_err(), follower.get(&typed).unwrap_err()] {
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
    }
}

#[tokio::test]
async fn a_revision_after_which_none_can_come_is_told() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (setting, _, mut live, good) = limit_of_one(&client).await;
    let last = format!("{{\"revision\":{},\"change\":\"set\"}}\n1", u64::MAX);
    client.set(LIMIT, last).await.unwrap();
    let told = live.next().await.unwrap();
    assert!(matches!(told, Err(Error::Malformed { .. })), "{told:?}");
    let error = setting.set(&Layer::Default, &2).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    client.set(LIMIT, good).await.unwrap();
    assert_eq!(value(&mut live).await, Some(1));
    let history = format!("/config/history/default/limit/{}", u64::MAX);
    client.create(history, "").await.unwrap();
    client.delete(LIMIT).await.unwrap();
    let error = setting.set(&Layer::Default, &2).await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
}

#[tokio::test]
async fn a_group_sees_a_change_first() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    let layer = Layer::Default;
    setting.set(&layer, &1).await.unwrap();
    let canary = Place::new().group("canary").unwrap();
    let canary = registry.follow(canary).await.unwrap();
    let other = registry.follow(Place::new().group("eu").unwrap()).await.unwrap();
    let (mut early, mut late) = (canary.live(&setting).unwrap(), other.live(&setting).unwrap());
    assert_eq!((value(&mut early).await, value(&mut late).await), (Some(1), Some(1)));

    setting.stage(&layer, &["canary"], &2).await.unwrap();
    assert_eq!(value(&mut early).await, Some(2));
    other.sync().await.unwrap();
    assert_eq!(other.get(&setting).unwrap().unwrap().value, 1);
    setting.abandon(&layer).await.unwrap();
    assert_eq!(value(&mut early).await, Some(1));

    setting.stage(&layer, &["canary"], &3).await.unwrap();
    setting.widen(&layer, &["eu"]).await.unwrap();
    assert_eq!((value(&mut early).await, value(&mut late).await), (Some(3), Some(3)));
    assert!(other.get(&setting).unwrap().unwrap().origin.is_staged);
    let promoted = setting.promote(&layer).await.unwrap();
    other.sync().await.unwrap();
    let seen = other.get(&setting).unwrap().unwrap();
    let origin = Origin { layer: layer.clone(), revision: promoted, is_staged: false };
    assert_eq!((seen.value, seen.origin, seen.beneath), (3, origin, vec![]));
    assert_eq!(setting.staged(&layer).await.unwrap(), None);

    // What was staged on an old revision is not promoted.
    setting.stage(&layer, &["canary"], &4).await.unwrap();
    setting.set(&layer, &5).await.unwrap();
    assert!(matches!(setting.promote(&layer).await, Err(Error::Conflict { .. })));
    setting.abandon(&layer).await.unwrap();
    assert!(matches!(setting.promote(&layer).await, Err(Error::Gone { .. })));
    assert!(matches!(setting.stage(&layer, &[], &4).await, Err(Error::Config(_))));
}

/// Lets the future go on until it waits for what it has asked.
async fn ask(future: Pin<&mut impl Future>) {
    let mut future = future;
    let asks = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await;
    assert!(asks, "it has ended without a question");
}

#[tokio::test]
async fn what_is_staged_fits_the_schema_of_the_moment_when_it_is_shown() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<Value>("limit").unwrap();
    let text = Schema { kind: Some(Kind::String), ..Schema::default() };
    let whole = Schema { kind: Some(Kind::Integer), ..Schema::default() };
    let service = Layer::service("billing").unwrap();
    setting.set(&Layer::Default, &json!({"size": 1})).await.unwrap();

    // The schema is another one when the value is written than when it was read.
    let layer = Layer::Default;
    let number = json!(1);
    let mut staging = Box::pin(setting.stage(&layer, &["canary"], &number));
    ask(staging.as_mut()).await;
    setting.set_schema(&text).await.unwrap();
    let refused = staging.await.unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    assert_eq!(setting.staged(&layer).await.unwrap(), None);
    // The same when another one is staged already, and for an overlay.
    setting.stage(&layer, &["canary"], &json!("one")).await.unwrap();
    let two = json!("two");
    let mut staging = Box::pin(setting.stage(&layer, &["canary"], &two));
    ask(staging.as_mut()).await;
    setting.set_schema(&whole).await.unwrap();
    assert!(matches!(staging.await, Err(Error::Invalid { .. })));
    let staged = setting.staged(&layer).await.unwrap().unwrap();
    assert_eq!(staged.value.value, Some(json!("one")));
    // It is shown to nobody else if it does not fit any more.
    let refused = setting.widen(&layer, &["eu"]).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    assert_eq!(setting.staged(&layer).await.unwrap().unwrap().groups, ["canary"]);
    setting.set_schema(&Schema::default()).await.unwrap();
    let overlay = Overlay::new(&json!({"name": 1})).unwrap();
    let mut staging = Box::pin(setting.stage_overlay(&service, &["canary"], &overlay));
    ask(staging.as_mut()).await;
    setting.set_schema(&text).await.unwrap();
    assert!(matches!(staging.await, Err(Error::Invalid { .. })));
    assert_eq!(setting.staged(&service).await.unwrap(), None);

    // What could not be promoted for its size is not shown before.
    let large = registry.setting::<String>("large").unwrap();
    let too_large = large.stage(&layer, &["canary"], &"x".repeat(SETTING_BYTES - 1)).await;
    assert!(matches!(too_large, Err(Error::Invalid { .. })), "{too_large:?}");
}

#[tokio::test]
async fn the_history_of_a_value_deleted_by_hand_stays_and_brings_it_back() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (setting, _, mut live, _) = limit_of_one(&client).await;
    let layer = Layer::Default;
    let second = setting.set(&layer, &2).await.unwrap();
    assert_eq!(value(&mut live).await, Some(2));
    client.delete(LIMIT).await.unwrap();
    assert_eq!(value(&mut live).await, None);
    let history = setting.history(&layer).await.unwrap();
    let values: Vec<_> = history.into_iter().map(|past| past.unwrap().value.unwrap()).collect();
    assert_eq!(values, [2, 1]);
    assert_eq!(setting.revision(&layer, second).await.unwrap().value, Some(2));
    assert_eq!(setting.diff(&layer, Revision(1), second).await.unwrap().len(), 1);
    assert!(matches!(setting.revision(&layer, Revision(3)).await, Err(Error::Gone { .. })));
    // One that was edited by hand is named.
    let first = format!("/config/history/default/limit/{:020}", 1);
    let good = client.get(first.as_str()).await.unwrap().data.unwrap();
    client.set(first.as_str(), "{\"revision\":1,\"change\":\"set\"}\noops").await.unwrap();
    let error = setting.diff(&layer, Revision(1), second).await.unwrap_err();
    assert!(error.to_string().starts_with(&first), "{error}");
    client.set(first, good).await.unwrap();
    let back = setting.rollback(&layer, second).await.unwrap();
    assert_eq!(back, Revision(3));
    assert_eq!(value(&mut live).await, Some(2));
}

#[tokio::test]
async fn a_value_edited_by_hand_is_told_and_the_next_one_follows() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (setting, follower, mut live, good) = limit_of_one(&client).await;
    client.set(LIMIT, "oops").await.unwrap();
    let told = live.next().await.unwrap();
    assert!(matches!(told, Err(Error::Malformed { .. })), "{told:?}");
    assert!(matches!(setting.set(&Layer::Default, &2).await, Err(Error::Malformed { .. })));
    client.set(LIMIT, good).await.unwrap();
    assert_eq!(value(&mut live).await, Some(1));
    // Deleted by hand, its numbers go on where they were.
    client.delete(LIMIT).await.unwrap();
    assert_eq!(value(&mut live).await, None);
    assert_eq!(setting.set(&Layer::Default, &2).await.unwrap(), Revision(2));
    assert_eq!(value(&mut live).await, Some(2));
    client.delete(LIMIT).await.unwrap();
    assert_eq!(value(&mut live).await, None);
    let edited = setting.edit(&Layer::Default, |now| now.is_none().then_some(3)).await;
    assert_eq!(edited.unwrap(), Some(Revision(3)));
    assert_eq!(value(&mut live).await, Some(3));
    client.close().await.unwrap();
    assert!(matches!(live.next().await, Some(Err(Error::Ended { .. }))));
    assert!(live.next().await.is_none() && follower.has_ended());
}

#[tokio::test]
async fn what_was_missed_is_a_gap_and_what_has_gone_since_is_no_error() {
    let cluster = Cluster::start(1).await;
    let near = Registry::new(&cluster.client().await, "/config").unwrap();
    let near = near.setting::<u32>("limit").unwrap();
    let wire = Wire::to(&cluster.addresses()).await;
    let registry = Registry::new(&wire.client(Duration::from_secs(30)).await, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    let canary = Place::new().group("canary").unwrap();
    let mut live = registry.follow(canary).await.unwrap().live(&setting).unwrap();
    assert_eq!(value(&mut live).await, None);
    let layer = Layer::Default;

    // The first values of all, of which the last is shown.
    wire.cut();
    near.set(&layer, &1).await.unwrap();
    near.set(&layer, &2).await.unwrap();
    wire.mend();
    assert_eq!(timeout(DEADLINE, live.next()).await.unwrap(), Some(Ok(LiveItem::Gap)));
    assert_eq!(value(&mut live).await, Some(2));

    // Around one that was deleted by hand.
    wire.cut();
    cluster.client().await.delete(LIMIT).await.unwrap();
    near.set(&layer, &3).await.unwrap();
    near.set(&layer, &4).await.unwrap();
    wire.mend();
    let mut has_gap = false;
    loop {
        match timeout(DEADLINE, live.next()).await.unwrap().unwrap().unwrap() {
            LiveItem::Gap => has_gap = true,
            LiveItem::Value(now) if now.as_ref().is_some_and(|now| now.value == 4) => break,
            LiveItem::Value(now) => assert!(now.is_none(), "{now:?}"),
        }
    }
    assert!(has_gap, "3 was not shown");

    // What was staged and is not any more when it is told.
    wire.cut();
    near.stage(&layer, &["canary"], &7).await.unwrap();
    near.abandon(&layer).await.unwrap();
    near.set(&layer, &5).await.unwrap();
    wire.mend();
    assert_eq!(value(&mut live).await, Some(5));
}

#[tokio::test]
async fn a_staged_value_edited_by_hand_is_told_to_its_groups_alone() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let (setting, follower, _, _) = limit_of_one(&client).await;
    let registry = Registry::new(&client, "/config").unwrap();
    let canary = registry.follow(Place::new().group("canary").unwrap()).await.unwrap();
    setting.stage(&Layer::Default, &["canary"], &2).await.unwrap();
    client.set("/config/live/default/staged/limit", "oops").await.unwrap();
    for follower in [&follower, &canary] {
        follower.sync().await.unwrap();
    }
    let told = canary.get(&setting);
    assert!(matches!(told, Err(Error::Malformed { .. })), "{told:?}");
    assert_eq!(follower.get(&setting).unwrap().unwrap().value, 1);
}

#[tokio::test]
async fn a_value_that_may_not_be_read_is_not_taken_for_none() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    let service = Layer::service("billing").unwrap();
    setting.set(&Layer::Default, &1).await.unwrap();
    setting.set(&service, &2).await.unwrap();
    let node = "/config/live/service.billing/values/limit";
    let acl = Acl { perms: Perms::ADMIN, ..Acl::open()[0].clone() };
    client.set_acl(node, [acl]).await.unwrap();
    let place = Place::new().service("billing").unwrap();
    let follower = registry.follow(place).await.unwrap();
    let error = follower.get(&setting).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoAuth), "{error}");
    assert!(error.to_string().contains(node), "{error}");
    let mut live = follower.live(&setting).unwrap();
    assert_eq!(live.next().await, Some(Err(error)));
    // It is the others' no less.
    assert_eq!(
        registry.follow(Place::new()).await.unwrap().get(&setting).unwrap().unwrap().value,
        1
    );
    client.set_acl(node, Acl::open()).await.unwrap();
    client.delete(node).await.unwrap();
    assert_eq!(value(&mut live).await, Some(1));
    setting.set(&service, &3).await.unwrap();
    assert_eq!(value(&mut live).await, Some(3));
}

#[tokio::test]
async fn no_edit_is_lost_and_no_last_value_skipped_while_leaders_die() {
    let mut cluster = Cluster::start(3).await;
    let mut dice = Dice::new();
    let wire = Wire::to(&cluster.addresses()).await;
    let far = wire.client(Duration::from_secs(30)).await;
    let follower = Registry::new(&far, "/config").unwrap().follow(Place::new()).await.unwrap();
    let mut editors = Vec::new();
    for _ in 0..3 {
        let client = cluster.client().await;
        let mut dice = dice.split();
        editors.push(tokio::spawn(async move {
            let registry = Registry::new(&client, "/config").unwrap();
            let setting = registry.setting::<u64>("count").unwrap();
            let mut done = 0;
            while done < 20 * rounds() {
                match setting.edit(&Layer::Default, |n| Some(n.unwrap_or(0) + 1)).await {
                    Ok(_) => done += 1,
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                sleep(Duration::from_millis(dice.below(30))).await;
            }
            done
        }));
    }
    let registry = Registry::new(&far, "/config").unwrap();
    let setting = registry.setting::<u64>("count").unwrap();
    let mut live = follower.live(&setting).unwrap();
    let last = 3 * 20 * rounds();
    let watcher = tokio::spawn(async move {
        // The first value may be any.
        let (mut before, mut gap) = (0, true);
        while before < last {
            match timeout(DEADLINE, live.next()).await.expect("the last value").unwrap().unwrap() {
                LiveItem::Gap => gap = true,
                LiveItem::Value(None) => {}
                LiveItem::Value(Some(now)) => {
                    let next = now.value == before + 1 || (gap && now.value > before);
                    assert!(next, "{} follows {before}", now.value);
                    (before, gap) = (now.value, false);
                }
            }
        }
    });
    for _ in 0..rounds() {
        wire.cut();
        strike(&mut cluster, &mut dice).await;
        wire.mend();
    }
    let mut total = 0;
    for editor in editors {
        total += editor.await.unwrap();
    }
    assert_eq!(total, last);
    watcher.await.unwrap();
}
