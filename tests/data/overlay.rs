//! Overlays: layers of the configuration that say some fields only.

use std::collections::BTreeMap;

use conclave_client::recipes::Error;
use conclave_client::recipes::config::{
    Change, Kind, Layer, Live, LiveItem, Origin, Overlay, Place, Registry, Resolved, Revision,
    Schema, Secret, Setting,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::chaos::{Dice, rounds};
use crate::harness::{Cluster, DEADLINE};

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Pool {
    min: u32,
    max: u32,
    password: Secret<String>,
    #[serde(default)]
    proxy: Option<String>,
}

fn pool(min: u32, max: u32) -> Pool {
    Pool { min, max, password: Secret::new("hunter2".into()), proxy: Some("p:80".into()) }
}

fn overlay(fields: &Value) -> Overlay {
    Overlay::new(fields).unwrap()
}

/// The layers, the weakest first.
fn layers() -> [Layer; 4] {
    [
        Layer::Default,
        Layer::environment("prod").unwrap(),
        Layer::service("billing").unwrap(),
        Layer::instance("billing-7").unwrap(),
    ]
}

fn place() -> Place {
    let place = Place::new().environment("prod").unwrap().service("billing").unwrap();
    place.instance("billing-7").unwrap()
}

/// What comes next.
async fn next(live: &mut Live<Pool>) -> Result<Option<Resolved<Pool>>, Error> {
    loop {
        match timeout(DEADLINE, live.next()).await.expect("something").unwrap()? {
            LiveItem::Value(value) => return Ok(value),
            LiveItem::Gap => {}
        }
    }
}

async fn value(live: &mut Live<Pool>) -> Option<Pool> {
    next(live).await.unwrap().map(|resolved| resolved.value)
}

#[test]
fn objects_are_merged_field_by_field_and_all_else_replaces() {
    let beneath = json!({"a": 1, "o": {"x": 1, "y": {"z": 2}}, "l": [1, 2]});
    for (fields, merged) in [
        (json!({}), beneath.clone()),
        (json!({"a": 2}), json!({"a": 2, "o": {"x": 1, "y": {"z": 2}}, "l": [1, 2]})),
        (json!({"a": null, "b": null}), json!({"o": {"x": 1, "y": {"z": 2}}, "l": [1, 2]})),
        (json!({"o": {"y": {"w": 3}}}), {
            json!({"a": 1, "o": {"x": 1, "y": {"z": 2, "w": 3}}, "l": [1, 2]})
        }),
        (json!({"o": {"y": null}, "l": [3]}), json!({"a": 1, "o": {"x": 1}, "l": [3]})),
        (json!({"o": 7, "a": {"b": 1, "c": null}}), json!({"a": {"b": 1}, "o": 7, "l": [1, 2]})),
        (json!({"l": {"0": 9}}), { json!({"a": 1, "o": {"x": 1, "y": {"z": 2}}, "l": {"0": 9}}) }),
    ] {
        assert_eq!(overlay(&fields).over(Some(beneath.clone())), merged, "{fields}");
    }
    assert_eq!(overlay(&json!({"a": null, "b": 1})).over(None), json!({"b": 1}));
    assert_eq!(overlay(&json!({"b": 1})).over(Some(json!("text"))), json!({"b": 1}));
    for none in [json!(null), json!(1), json!("text"), json!([])] {
        assert!(matches!(Overlay::new(&none), Err(Error::Config(_))), "{none}");
    }
}

#[tokio::test]
async fn a_field_is_overridden_alone_and_the_others_follow_the_layers_beneath() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<Pool>("db.pool").unwrap();
    let [default, environment, service, instance] = layers();
    setting.set(&default, &pool(1, 10)).await.unwrap();
    let follower = registry.follow(place()).await.unwrap();
    let mut live = follower.live(&setting).unwrap();
    assert_eq!(value(&mut live).await, Some(pool(1, 10)));

    let one = setting.set_overlay(&instance, None, &overlay(&json!({"max": 70}))).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(1, 70)));
    setting.set_overlay(&service, None, &overlay(&json!({"min": 3, "max": 30}))).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(3, 70)));
    setting.set(&environment, &pool(2, 20)).await.unwrap();
    let seen = next(&mut live).await.unwrap().unwrap();
    assert_eq!(seen.value, pool(3, 70));
    let beneath: Vec<_> = seen.beneath.iter().map(|origin| &origin.layer).collect();
    assert_eq!((&seen.origin.layer, &beneath[..]), (&instance, &[&service, &environment][..]));
    setting.set_overlay(&service, None, &overlay(&json!({"proxy": null}))).await.unwrap();
    assert_eq!(value(&mut live).await, Some(Pool { proxy: None, ..pool(2, 70) }));
    setting.remove(&environment, None).await.unwrap();
    assert_eq!(value(&mut live).await, Some(Pool { proxy: None, ..pool(1, 70) }));

    // A group sees another overlay first; it is promoted as one, and taken back as one.
    let canary = registry.follow(place().group("canary").unwrap()).await.unwrap();
    let mut early = canary.live(&setting).unwrap();
    assert_eq!(value(&mut early).await.unwrap().max, 70);
    let wider = overlay(&json!({"max": 80}));
    setting.stage_overlay(&instance, &["canary"], &wider).await.unwrap();
    let seen = next(&mut early).await.unwrap().unwrap();
    let origin = Origin { layer: instance.clone(), revision: one, is_staged: true };
    assert_eq!((seen.value.max, seen.origin), (80, origin));
    let staged = setting.staged(&instance).await.unwrap().unwrap().value;
    assert_eq!((staged.value, staged.overlay), (None, Some(wider.clone())));
    setting.promote(&instance).await.unwrap();
    assert_eq!(value(&mut live).await.unwrap().max, 80);
    setting.rollback(&instance, one).await.unwrap();
    assert_eq!(value(&mut live).await.unwrap().max, 70);
    let now = setting.get(&instance).await.unwrap().unwrap();
    assert_eq!((now.value, now.change), (None, Change::Rollback { to: one.0 }));
    let history = setting.history(&instance).await.unwrap();
    let overlays = history.iter().filter(|past| past.as_ref().unwrap().overlay.is_some());
    assert_eq!(overlays.count(), 3);
    let diff = setting.diff(&instance, Revision(1), Revision(2)).await.unwrap();
    assert_eq!(diff[0].to_string(), "/max: 70 → 80");
}

#[tokio::test]
async fn an_overlay_has_to_make_a_valid_value_of_the_default() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let least = |pool: &Pool| if pool.min <= pool.max { Ok(()) } else { Err("min > max".into()) };
    let setting = registry.setting::<Pool>("db.pool").unwrap().validate(least);
    let [default, environment, service, instance] = layers();
    let set = async |layer: &Layer, fields: Value| {
        setting.set_overlay(layer, None, &overlay(&fields)).await.map_err(|error| error.to_string())
    };
    let number = || Schema { kind: Some(Kind::Integer), maximum: Some(99.0), ..Schema::default() };
    setting
        .set_schema(&Schema {
            kind: Some(Kind::Object),
            properties: [("min".to_owned(), number()), ("max".to_owned(), number())].into(),
            required: ["min".to_owned(), "max".to_owned()].into(),
            ..Schema::default()
        })
        .await
        .unwrap();

    // Without a default, its fields are checked alone.
    set(&service, json!({"max": 5})).await.unwrap();
    for (fields, why) in [
        (json!({"max": 100}), "/max is more than 99"),
        (json!({"max": "x"}), "/max is no integer"),
        (json!({"max": null}), "the value lacks the field \"max\""),
    ] {
        let refused = set(&service, fields).await.unwrap_err();
        assert!(refused.ends_with(why), "{refused}");
    }
    // Who sees it gets an error, since there is nothing beneath it.
    let follower = registry.follow(place()).await.unwrap();
    let mut live = follower.live(&setting).unwrap();
    assert!(matches!(next(&mut live).await, Err(Error::Invalid { .. })));
    setting.set(&default, &pool(1, 10)).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(1, 5)));

    let refused = set(&instance, json!({"min": 11})).await.unwrap_err();
    assert!(refused.ends_with("min > max"), "{refused}");
    let refused = set(&instance, json!({"proxy": 7})).await.unwrap_err();
    assert!(refused.contains("it is not of the setting's type"), "{refused}");
    assert!(matches!(
        setting.stage_overlay(&instance, &["canary"], &overlay(&json!({"min": 11}))).await,
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(
        setting.set_overlay(&default, None, &overlay(&json!({"min": 1}))).await,
        Err(Error::Config(_))
    ));
    let stale = setting.set_overlay(&service, Some(Revision(9)), &overlay(&json!({}))).await;
    assert!(matches!(stale, Err(Error::Conflict { .. })), "{stale:?}");
    assert!(matches!(setting.edit(&service, |pool| pool).await, Err(Error::Config(_))));

    // Each is valid over the default, both together are not: that is told, and what mends it, too.
    set(&environment, json!({"min": 7})).await.unwrap();
    let told = next(&mut live).await;
    assert!(matches!(told, Err(Error::Invalid { .. })), "{told:?}");
    assert!(matches!(follower.get(&setting), Err(Error::Invalid { .. })));
    set(&environment, json!({"min": 4})).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(4, 5)));

    // What was valid over the default of then is checked again when it is set again.
    setting.set(&default, &pool(0, 3)).await.unwrap();
    assert_eq!(value(&mut live).await, Some(pool(4, 5)));
    let back = setting.rollback(&environment, Revision(1)).await;
    assert!(matches!(back, Err(Error::Invalid { .. })), "{back:?}");
}

#[tokio::test]
async fn an_overlay_shows_no_secret_and_one_edited_by_hand_is_told() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<Pool>("db.pool").unwrap();
    let [default, _, service, _] = layers();
    setting.set(&default, &pool(1, 2)).await.unwrap();
    let secret = overlay(&json!({"password": "hunter3"}));
    setting.set_overlay(&service, None, &secret).await.unwrap();
    let follower = registry.follow(place()).await.unwrap();
    let seen = follower.get(&setting).unwrap().unwrap();
    assert_eq!(seen.value.password.expose(), "hunter3");
    let history = setting.history(&service).await.unwrap();
    let wrong = overlay(&json!({"password": ["hunter4"]}));
    let refused = setting.set_overlay(&service, None, &wrong).await.unwrap_err();
    for text in [format!("{secret:?} {seen:?} {history:?}"), format!("{refused} {refused:?}")] {
        assert!(!text.contains("hunter"), "{text}");
    }
    let path = "/config/live/service.billing/values/db.pool";
    let good = client.get(path).await.unwrap().data.unwrap();
    let head = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut live = follower.live(&setting).unwrap();
    assert!(value(&mut live).await.is_some());
    client.set(path, [&good[..head], b"[1]"].concat()).await.unwrap();
    let told = next(&mut live).await;
    assert!(matches!(told, Err(Error::Malformed { .. })), "{told:?}");
    assert!(matches!(setting.get(&service).await, Err(Error::Malformed { .. })));
    client.set(path, good).await.unwrap();
    assert!(value(&mut live).await.is_some());
}

/// What a layer says, as the model of the test below has it.
#[derive(Clone, Debug)]
struct Said {
    is_overlay: bool,
    json: Value,
}

const LEAVES: [&str; 4] = ["/a", "/b", "/n/x", "/n/y"];

/// What is seen: for each leaf by itself, what the strongest layer says that says anything of it.
fn expected(said: &[Option<Said>; 4]) -> Option<BTreeMap<&'static str, Value>> {
    said.iter().flatten().next()?;
    let leaf = |at: &'static str| {
        for Said { is_overlay, json } in said.iter().rev().flatten() {
            let is_removed = at.starts_with("/n") && json.get("n").is_some_and(Value::is_null);
            match json.pointer(at) {
                Some(Value::Null) => return None,
                Some(value) => return Some((at, value.clone())),
                None if is_removed || !is_overlay => return None,
                None => {}
            }
        }
        None
    };
    Some(LEAVES.into_iter().filter_map(leaf).collect())
}

fn leaves(json: &Value) -> BTreeMap<&'static str, Value> {
    LEAVES.into_iter().filter_map(|at| Some((at, json.pointer(at)?.clone()))).collect()
}

/// Some fields, of an overlay perhaps with those that it removes.
fn fields(dice: &mut Dice, is_overlay: bool) -> Value {
    let mut json = json!({});
    for at in LEAVES {
        if dice.below(2) == 0 {
            continue;
        }
        let removes = is_overlay && dice.below(4) == 0;
        let leaf = if removes { Value::Null } else { json!(dice.below(100)) };
        match at.strip_prefix("/n/") {
            Some(name) => json["n"][name] = leaf,
            None => json[&at[1..]] = leaf,
        }
    }
    if is_overlay && dice.below(8) == 0 {
        json["n"] = Value::Null;
    }
    json
}

/// Makes a change at random, here and in the model.
async fn change(setting: &Setting<Value>, said: &mut [Option<Said>; 4], dice: &mut Dice) {
    let index = usize::try_from(dice.below(4)).unwrap();
    let layer = &layers()[index];
    if dice.below(5) == 0 {
        setting.remove(layer, None).await.unwrap();
        said[index] = None;
        return;
    }
    let is_overlay = index > 0 && dice.below(3) > 0;
    let json = fields(dice, is_overlay);
    let is_staged = dice.below(4) == 0;
    match (is_overlay, is_staged) {
        (true, true) => setting.stage_overlay(layer, &["canary"], &overlay(&json)).await.unwrap(),
        (true, false) => {
            setting.set_overlay(layer, None, &overlay(&json)).await.unwrap();
        }
        (false, true) => setting.stage(layer, &["canary"], &json).await.unwrap(),
        (false, false) => {
            setting.set(layer, &json).await.unwrap();
        }
    }
    if is_staged {
        setting.promote(layer).await.unwrap();
    }
    said[index] = Some(Said { is_overlay, json });
}

#[tokio::test]
async fn whichever_layer_changes_what_is_seen_follows_while_leaders_die() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    let registry = Registry::new(&client, "/config").unwrap();
    let setting = registry.setting::<Value>("any").unwrap();
    let follower = registry.follow(place()).await.unwrap();
    let mut live = follower.live(&setting).unwrap();
    let (mut dice, mut said, mut told) = (Dice::new(), [None, None, None, None], None);
    for _ in 0..rounds() {
        for _ in 0..40 {
            change(&setting, &mut said, &mut dice).await;
            follower.sync().await.unwrap();
            let seen = follower.get(&setting).unwrap();
            let value = seen.as_ref().map(|seen| leaves(&seen.value));
            assert_eq!(value, expected(&said), "{said:?}");
            while told != seen {
                match timeout(DEADLINE, live.next()).await.expect("the value").unwrap().unwrap() {
                    LiveItem::Value(value) => told = value,
                    LiveItem::Gap => {}
                }
            }
        }
        let leader = cluster.leader().await;
        cluster.kill(leader);
        change(&setting, &mut said, &mut dice).await;
        cluster.launch(leader);
        cluster.wait_until_serving().await;
    }
}
