//! Operation logs: long ones, and ones that others put something into.

use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::log::{Entry, Follower, Log, Writer};
use conclave_client::recipes::{Election, Error, Leadership};
use tokio::time::timeout;

use crate::chaos::Wire;
use crate::harness::{Cluster, DEADLINE};

async fn lead(client: &Client) -> Leadership {
    let election = Election::new(client, "/election").unwrap();
    timeout(DEADLINE, election.campaign("")).await.unwrap().unwrap()
}

/// Appends that many operations, as few at once as it likes.
async fn append(writer: &mut Writer<'_>, count: usize) -> u64 {
    let mut last = 0;
    for start in (0..count).step_by(500) {
        last = writer.append(vec!["x"; (count - start).min(500)]).await.unwrap();
    }
    last
}

async fn next(follower: &mut Follower) -> Result<Entry, Error> {
    timeout(DEADLINE, follower.next()).await.expect("there is something to be told")
}

#[tokio::test]
async fn a_leadership_leaves_room_for_998_operations_at_once() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    for refused in [0, 999] {
        let error = writer.append(vec!["x"; refused]).await.unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
    }
    assert_eq!(writer.append(vec!["x"; 998]).await.unwrap(), 998);
    assert_eq!(log.follow().await.unwrap().end().await.unwrap(), 998);
}

#[tokio::test]
async fn a_long_log_becomes_short() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    let last = append(&mut writer, 2100).await;
    writer.compact(last - 1, "nearly all").await.unwrap();
    assert_eq!(client.children("/log/operations").await.unwrap().len(), 1);
    let mut follower = log.follow().await.unwrap();
    let state = Entry::State { number: last - 1, state: "nearly all".into() };
    assert_eq!(next(&mut follower).await.unwrap(), state);
    let operation = Entry::Operation { number: last, operation: "x".into() };
    assert_eq!(next(&mut follower).await.unwrap(), operation);
}

#[tokio::test]
async fn a_state_goes_neither_back_nor_ahead_of_the_log() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    append(&mut writer, 10).await;
    writer.compact(8, "eight").await.unwrap();
    // Who leads next comes to it with what its follower had when it was elected.
    let mut next_writer = log.write(leadership.hold()).await.unwrap();
    next_writer.compact(5, "five").await.unwrap();
    for writer in [&mut writer, &mut next_writer] {
        let error = writer.compact(11, "eleven").await.unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
    }
    let mut follower = log.follow().await.unwrap();
    let state = Entry::State { number: 8, state: "eight".into() };
    assert_eq!(next(&mut follower).await.unwrap(), state);
    for number in 9..=10 {
        let operation = Entry::Operation { number, operation: "x".into() };
        assert_eq!(next(&mut follower).await.unwrap(), operation);
    }
    // Nobody was told of a state that is ahead of the log: the next operation is told to all.
    assert_eq!(next_writer.append(["y"]).await.unwrap(), 11);
    let operation = Entry::Operation { number: 11, operation: "y".into() };
    assert_eq!(next(&mut follower).await.unwrap(), operation);
}

#[tokio::test]
async fn a_log_whose_numbers_were_edited_by_hand_says_so() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    let state = |number: u64| format!("{number}\n");
    client.set("/log/state", state(u64::MAX)).await.unwrap();
    let error = log.follow().await.err().unwrap();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    let error = writer.append(["x"]).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    // The last number that there is: nothing can come after it.
    client.set("/log/state", state(u64::MAX - 1)).await.unwrap();
    let mut follower = log.follow().await.unwrap();
    assert!(matches!(next(&mut follower).await.unwrap(), Entry::State { .. }));
    let error = writer.append(["x"]).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    client.set("/log/state", "").await.unwrap();
    client.create(format!("/log/operations/{}", u64::MAX), "").await.unwrap();
    let error = log.follow().await.err().unwrap();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    assert_eq!(writer.append(["x"]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_follower_goes_on_behind_a_deleted_operation_when_a_state_stands_for_it() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    append(&mut writer, 3).await;
    client.delete("/log/operations/00000000000000000002").await.unwrap();
    let mut follower = log.follow().await.unwrap();
    let first = Entry::Operation { number: 1, operation: "x".into() };
    assert_eq!(next(&mut follower).await.unwrap(), first);
    let error = next(&mut follower).await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
    writer.compact(2, "two").await.unwrap();
    let state = Entry::State { number: 2, state: "two".into() };
    assert_eq!(next(&mut follower).await.unwrap(), state);
    let third = Entry::Operation { number: 3, operation: "x".into() };
    assert_eq!(next(&mut follower).await.unwrap(), third);
}

#[tokio::test]
async fn a_follower_that_was_away_is_told_the_state_for_operations_that_are_gone() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    append(&mut writer, 1).await;
    let wire = Wire::to(&cluster.addresses()).await;
    let far = wire.client(Duration::from_secs(30)).await;
    let mut follower = Log::new(&far, "/log").unwrap().follow().await.unwrap();
    let first = Entry::Operation { number: 1, operation: "x".into() };
    assert_eq!(next(&mut follower).await.unwrap(), first);
    wire.cut();
    append(&mut writer, 3).await;
    writer.compact(3, "three").await.unwrap();
    wire.mend();
    let state = Entry::State { number: 3, state: "three".into() };
    assert_eq!(next(&mut follower).await.unwrap(), state);
    let last = Entry::Operation { number: 4, operation: "x".into() };
    assert_eq!(next(&mut follower).await.unwrap(), last);
}

#[tokio::test]
async fn a_follower_that_was_behind_passes_a_node_that_is_none_of_the_log() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let leadership = lead(&client).await;
    let log = Log::new(&client, "/log").unwrap();
    let mut writer = log.write(leadership.hold()).await.unwrap();
    let mut follower = log.follow().await.unwrap();
    // By its name it comes before everything else.
    client.create("/log/a", "").await.unwrap();
    // More than is kept for a follower that does not ask.
    let last = append(&mut writer, 10_000).await;
    assert_eq!(follower.end().await.unwrap(), last);
    let error = next(&mut follower).await.unwrap_err();
    assert!(matches!(&error, Error::Foreign { path, .. } if path.as_str() == "/log/a"), "{error}");
    for expected in 1..=last {
        let entry = next(&mut follower).await.unwrap();
        assert!(matches!(entry, Entry::Operation { number, .. } if number == expected));
    }
}
