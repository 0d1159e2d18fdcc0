//! What no recipe was made for: names that are none, nodes by hand, sessions that are over. Each is
//! told by an error that says what it is; nothing hangs, and nothing is made up.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use conclave_client::Client;
use conclave_client::recipes::assignment::{Order, Work};
use conclave_client::recipes::cache::Cache;
use conclave_client::recipes::config::{Layer, Place, Registry};
use conclave_client::recipes::counter::{Counter, IdBlocks, SharedValue};
use conclave_client::recipes::discovery::{Discovery, Instance, Strategy};
use conclave_client::recipes::log::Log;
use conclave_client::recipes::members::{Group, KeptNode};
use conclave_client::recipes::names::Names;
use conclave_client::recipes::partition::Partitioner;
use conclave_client::recipes::queue::{Push, Queue};
use conclave_client::recipes::ring::LiveRing;
use conclave_client::recipes::two_phase::{Decision, Task, TwoPhase};
use conclave_client::recipes::{Barrier, DoubleBarrier, Election, Error, Fence, Lease, Loss};
use conclave_client::recipes::{MultiLease, MultiLock, Mutex, ReadWriteLock, Semaphore, Token};

use crate::chaos::Wire;
use crate::harness::{Cluster, DEADLINE, eventually};
use crate::soon;

const HOUR: Duration = Duration::from_secs(3600);

/// The rows of a table: every attempt fails in time, with an error of that kind.
macro_rules! all_fail {
    ($is_right:expr, { $($what:literal => $attempt:expr,)* }) => {
        $({
            let outcome: Result<(), Error> = soon(async { $attempt.map(drop) }).await;
            match outcome {
                Ok(()) => panic!("{}: no error", $what),
                Err(error) => assert!($is_right(&error), "{}: {error:?}", $what),
            }
        })*
    };
}

pub(crate) use all_fail;

fn partitions() -> Vec<String> {
    vec![String::from("p")]
}

#[tokio::test]
async fn names_that_are_none() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    let group = Group::new(c, "/group").unwrap();
    let names = Names::new(c, "/names").unwrap();
    let discovery = Discovery::new(c, "/services").unwrap();
    let queue = Queue::new(c, "/queue").unwrap();
    let work = Work::new(c, "/work").unwrap();
    let transactions = TwoPhase::new(c, "/tx").unwrap();
    let registry = Registry::new(c, "/config").unwrap();
    for name in ["", "a/b", "..", "a\0b"] {
        let id = Instance::new(name, "host:1");
        let none = || Instance::new("a", "host:1");
        all_fail!(|error: &Error| matches!(error, Error::Name { .. }), {
                    "a place" => conclave_client::recipes::place("/locks", name),
                    "a member" => group.join(name, "").await,
                    "a name" => names.bind(name, "").await,
                    "a name for good" => names.set(name, "").await,
                    "a name to look up" => names.resolve(name).await,
                    "a name to remove" => names.remove(name).await,
                    "a service" => discovery.register(name, &none()).await,
                    "a service to use" => discovery.provider(name, Strategy::Random).await,
                    "an instance" => discovery.register("db", &id).await,
                    "the id of an item" => queue.remove(name).await,
                    "a task" => work.submit(name, "").await,
                    "a task to cancel" => work.cancel(name).await,
                    "a worker" => work.worker(name).await,
                    "a partition" => Partitioner::join(c, "/parts", "a", vec![name.to_owned()]).await,
                    "a partition's member" => Partitioner::join(c, "/parts", name, partitions()).await,
                    "a transaction" => transactions.begin(name, &["a"], "").await,
                    "a participant" => transactions.begin("t", &[name], "").await,
                    "a participant's name" => transactions.participant(name).await,
                    "a layer" => Layer::service(name),
                    "a setting" => registry.setting::<u32>(name),
        });
    }
    // An item without an id has none; an empty one is not the same.
    let push = queue.push_with("", Push::new().id("a/b")).await;
    assert!(matches!(push, Err(Error::Name { .. })), "{push:?}");
}

#[tokio::test]
async fn what_is_not_possible() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    let none = || Vec::<String>::new();
    all_fail!(|error: &Error| matches!(error, Error::Config(_)), {
            "a mutex at the root" => Mutex::new(c, "/"),
            "a read/write lock at the root" => ReadWriteLock::new(c, "/"),
            "a semaphore at the root" => Semaphore::new(c, "/", 1),
            "an election at the root" => Election::new(c, "/"),
            "no locks at all" => MultiLock::new(c, none()),
            "a lease at the root" => Lease::new(c, "/", HOUR),
            "a lease of no time" => Lease::new(c, "/lease", Duration::ZERO),
            "leases at the root" => MultiLease::new(c, "/", 1, HOUR),
            "a barrier at the root" => Barrier::new(c, "/"),
            "a double barrier at the root" => DoubleBarrier::new(c, "/", 2),
            "a double barrier for nobody" => DoubleBarrier::new(c, "/double", 0),
            "a queue at the root" => Queue::new(c, "/"),
            "a queue without shards" => Queue::sharded(c, "/queue", 0),
            "work at the root" => Work::new(c, "/"),
            "a log at the root" => Log::new(c, "/"),
            "transactions at the root" => TwoPhase::new(c, "/"),
            "nobody takes part" => TwoPhase::new(c, "/tx")?.begin("t", &[], "").await,
            "partitions at the root" => Partitioner::join(c, "/", "a", partitions()).await,
            "no partitions" => Partitioner::join(c, "/parts", "a", none()).await,
            "blocks of no ids" => IdBlocks::new(c, "/ids", 0),
            "ids at the root" => IdBlocks::new(c, "/", 1),
            "a counter at the root" => Counter::new(c, "/"),
            "a value at the root" => SharedValue::new(c, "/"),
            "no leases at all" => MultiLease::new(c, "/leases", 0, HOUR),
    });
}

#[test]
fn what_is_made_outside_of_a_runtime() {
    let in_one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = in_one.block_on(Cluster::start(1));
    let client = in_one.block_on(cluster.client());
    let needs_one = |error: Option<Error>| {
        assert!(matches!(error, Some(Error::Config(_))), "{error:?}");
    };
    needs_one(Queue::new(&client, "/queue").err());
    needs_one(TwoPhase::new(&client, "/tx").err());
    needs_one(Mutex::new(&client, "/mutex").err());
    needs_one(at_once(Cache::tree(&client, "/cache").into_future()).err());
    needs_one(at_once(Partitioner::join(&client, "/parts", "a", partitions())).err());
    needs_one(at_once(Group::new(&client, "/group").unwrap().join("a", "")).err());
    needs_one(at_once(KeptNode::ttl(&client, "/kept", "", HOUR).create()).err());
    let again = at_once(Client::connect(cluster.addresses()));
    assert!(matches!(again, Err(conclave_client::Error::Config(_))), "{again:?}");
}

#[test]
fn what_is_awaited_outside_of_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = runtime.block_on(Cluster::start(1));
    let client = runtime.block_on(cluster.client());
    let c = &client;
    // What tasks are started for is made in the runtime.
    let (mut mutex, queue, lease, discovery, transactions) = {
        let _runtime = runtime.enter();
        let lease = Lease::new(c, "/lease", Duration::from_millis(1)).unwrap();
        let (mutex, queue) = (Mutex::new(c, "/mutex").unwrap(), Queue::new(c, "/queue").unwrap());
        let discovery = Discovery::new(c, "/services").unwrap();
        (mutex, queue, lease, discovery, TwoPhase::new(c, "/tx").unwrap())
    };
    // Both have seen the same; the second one has to wait a little and try again.
    let counters = [(); 2].map(|()| Counter::new(c, "/counter").unwrap());
    for counter in &counters {
        runtime.block_on(counter.add(1)).unwrap();
    }
    assert_eq!(elsewhere(&runtime, c, counters[0].add(1)), Ok(3));
    // Somebody has proposed a change, and has died.
    let setting = Registry::new(c, "/config").unwrap().setting::<u32>("limit").unwrap();
    runtime.block_on(setting.set(&Layer::Default, &1)).unwrap();
    let proposal = format!("/config/history/default/limit/{:020}", 2);
    runtime.block_on(c.create(proposal, "").into_future()).unwrap();
    let revision = elsewhere(&runtime, c, setting.set(&Layer::Default, &2)).unwrap();
    assert_eq!(revision.0, 2);
    // Nothing of this is to be had in time.
    let moment = Duration::from_millis(10);
    let mut other = {
        let _runtime = runtime.enter();
        Mutex::new(c, "/mutex").unwrap()
    };
    let hold = elsewhere(&runtime, c, mutex.lock_within(HOUR)).unwrap();
    let late = elsewhere(&runtime, c, other.lock_within(moment));
    assert!(matches!(late, Err(Error::Deadline { .. })), "{late:?}");
    let provider = runtime.block_on(discovery.provider("db", Strategy::Random)).unwrap();
    let late = elsewhere(&runtime, c, provider.wait(moment));
    assert!(matches!(late, Err(Error::Deadline { .. })), "{late:?}");
    let decision = elsewhere(&runtime, c, transactions.run("t", &["nobody"], "", moment));
    assert_eq!(decision, Ok(Decision::Abort));
    let lease = elsewhere(&runtime, c, lease.acquire("")).unwrap().unwrap();
    elsewhere(&runtime, c, lease.lost());
    let mut consumer = queue.consumer();
    let late = elsewhere(&runtime, c, async {
        let pushing = async {
            // The consumer has looked and waits.
            for _ in 0..20 {
                c.sync().await?;
            }
            queue.push("x").await
        };
        tokio::join!(consumer.next(), pushing)
    });
    assert_eq!(late.0.unwrap().data(), "x");
    drop(hold);
}

/// What comes of it when it is polled outside of the runtime that drives the client.
fn elsewhere<T>(
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    work: impl Future<Output = T>,
) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut work = std::pin::pin!(work);
    loop {
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => runtime.block_on(client.sync().into_future()).unwrap(),
        };
        assert!(tokio::time::Instant::now() < deadline, "it has no end");
    }
}

/// What comes of it without any wait.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    match std::pin::pin!(work).poll(&mut context) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it would start a task that nothing drives"),
    }
}

#[tokio::test]
async fn groups_that_are_empty() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    let discovery = Discovery::new(c, "/services").unwrap();
    let provider = discovery.provider("db", Strategy::Random).await.unwrap();
    let moment = Duration::from_millis(50);
    all_fail!(|error: &Error| matches!(error, Error::Empty { .. } | Error::Deadline { .. }), {
            "no instance" => provider.choose(),
            "no instance in time" => provider.wait(moment).await,
    });
    let members = Group::new(c, "/group").unwrap().members().await.unwrap();
    assert_eq!(members.names(), Ok(Vec::new()));
    assert_eq!(Election::new(c, "/election").unwrap().leader().await, Ok(None));
    assert_eq!(Mutex::new(c, "/mutex").unwrap().holder().await, Ok(None));
    assert_eq!(Names::new(c, "/names").unwrap().resolve("a").await, Ok(None));
    assert!(Queue::new(c, "/queue").unwrap().consumer().try_next().await.unwrap().is_none());
}

/// Makes a node and those above it.
pub(crate) async fn make(client: &Client, path: &str, data: &str) {
    let parts: Vec<_> = path.split('/').skip(1).collect();
    for end in 1..parts.len() {
        client.create(format!("/{}", parts[..end].join("/")), "").await.ok();
    }
    client.create(path, data.to_owned()).await.unwrap();
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn nodes_that_are_not_the_recipes() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    for path in [
        "/mutex/readme",
        "/shared/readme",
        "/election/readme",
        "/semaphore/queue/readme",
        "/permits/permits/readme",
        "/leases/readme",
        "/leases-2/slot-x",
        "/double/readme",
        "/double-2/member-0000000000",
        "/permits-2/permits/permit-x",
        "/queue/items/readme",
        "/group/readme",
        "/log/operations/readme",
        "/log-2/readme",
        "/parts/owners/p",
        "/work/workers/readme",
        "/config/live/readme",
    ] {
        make(c, path, "").await;
    }
    let leading = soon(Election::new(c, "/leader").unwrap().campaign("")).await.unwrap();
    let work = Work::new(c, "/work").unwrap();
    work.submit("task", "").await.unwrap();
    let hold = soon(Mutex::new(c, "/primary").unwrap().lock()).await.unwrap();
    let mut both = [Mutex::new(c, "/mutex").unwrap(), Mutex::new(c, "/other").unwrap()];
    let [mutex, _] = &mut both;
    let mut consumer = Queue::new(c, "/queue").unwrap().consumer();
    let mut parts = Partitioner::join(c, "/parts", "a", partitions()).await.unwrap();
    let others = Work::new(c, "/work-2").unwrap();
    make(c, "/work-2/assigned/readme", "").await;
    let transactions = TwoPhase::new(c, "/tx").unwrap();
    transactions.begin("t", &["a"], "").await.unwrap();
    assert_eq!(transactions.decide("t").await, Ok(Decision::Abort));
    let mut participant = transactions.participant("a").await.unwrap();
    let Task::Abort(decided) = soon(participant.next()).await.unwrap() else { panic!("none") };
    participant.done(&decided).await.unwrap();
    make(c, "/tx/t/readme", "").await;
    all_fail!(|error: &Error| matches!(error, Error::Foreign { .. }), {
            "an assignment" => others.assign(&leading).await,
            "to forget a transaction" => transactions.forget("t").await,
            "a mutex" => mutex.lock().await,
            "its holder" => Mutex::new(c, "/mutex")?.holder().await,
            "a reader" => ReadWriteLock::new(c, "/shared")?.read().await,
            "a writer" => ReadWriteLock::new(c, "/shared")?.write().await,
            "several locks" => MultiLock::new(c, ["/mutex", "/other"])?.lock().await,
            "a candidate" => Election::new(c, "/election")?.campaign("").await,
            "one who waits for a permit" => Semaphore::new(c, "/semaphore", 1)?.acquire().await,
            "a permit" => Semaphore::new(c, "/permits", 1)?.acquire().await,
            "how many permits" => Semaphore::new(c, "/permits", 1)?.held().await,
            "leases" => MultiLease::new(c, "/leases", 2, HOUR)?.acquire("").await,
            "leases by another name" => MultiLease::new(c, "/leases-2", 2, HOUR)?.acquire("").await,
            "a permit by another name" => Semaphore::new(c, "/permits-2", 1)?.acquire().await,
            "a double barrier" => DoubleBarrier::new(c, "/double", 1)?.enter().await,
            "a member that is no session's" => DoubleBarrier::new(c, "/double-2", 2)?.enter().await,
            "a queue" => consumer.next().await,
            "a group" => Group::new(c, "/group")?.members().await,
            "a log" => Log::new(c, "/log")?.follow().await,
            "a log's node" => Log::new(c, "/log-2")?.follow().await,
            "a partition" => parts.next().await,
            "a worker" => work.assign(&leading).await,
            "a layer" => Registry::new(c, "/config")?.layers().await,
    });
    // They were not touched, and nothing was left beside them.
    let left = eventually("nobody waits any more", async || {
        let names = c.children("/mutex").await.unwrap();
        (names.len() == 1).then_some(names)
    })
    .await;
    assert_eq!(left, ["readme"]);
    hold.release().await.unwrap();
}

#[tokio::test]
async fn nodes_that_are_not_the_recipes_and_come_later() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    let group = Group::new(c, "/group").unwrap();
    let _a = group.join("a", "").await.unwrap();
    let members = group.members().await.unwrap();
    let mut changes = members.changes().unwrap();
    let _b = group.join("b", "").await.unwrap();
    soon(changes.next()).await.unwrap().unwrap();
    assert_eq!(members.names(), Ok(vec!["a".to_owned(), "b".to_owned()]));
    let mut parts = Partitioner::join(c, "/parts", "a", partitions()).await.unwrap();
    soon(parts.next()).await.unwrap();
    let leading = soon(Election::new(c, "/leader").unwrap().campaign("")).await.unwrap();
    let work = Work::new(c, "/work").unwrap();
    let assigner = work.clone();
    let assigning = tokio::spawn(async move { assigner.assign(&leading).await });
    work.submit("task", "").await.unwrap();
    let mut worker = work.worker("a").await.unwrap();
    soon(worker.next()).await.unwrap();
    for path in ["/group/readme", "/parts/members/readme", "/work/workers/readme"] {
        make(c, path, "").await;
    }
    all_fail!(|error: &Error| matches!(error, Error::Foreign { .. }), {
            "changes of a group" => changes.next().await.unwrap(),
            "its members" => members.all(),
            "partitions" => parts.next().await,
            "tasks" => assigning.await.unwrap(),
    });
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn nodes_that_were_edited_by_hand() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    let mut mutex = Mutex::new(c, "/mutex").unwrap();
    let held = soon(mutex.lock()).await.unwrap();
    let writing = soon(ReadWriteLock::new(c, "/shared").unwrap().write()).await.unwrap();
    let leading = soon(Election::new(c, "/election").unwrap().campaign("")).await.unwrap();
    let lease = Lease::new(c, "/lease", HOUR).unwrap().acquire("").await.unwrap().unwrap();
    let slots = MultiLease::new(c, "/slots", 1, HOUR).unwrap();
    let slot = slots.acquire("").await.unwrap().unwrap();
    let inside = soon(DoubleBarrier::new(c, "/double", 1).unwrap().enter()).await.unwrap();
    let queue = Queue::new(c, "/queue").unwrap();
    queue.push("x").await.unwrap();
    let item = c.children("/queue/items").await.unwrap().remove(0);
    let transactions = TwoPhase::new(c, "/tx").unwrap();
    transactions.begin("t", &["a"], "").await.unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    let log = Log::new(c, "/log").unwrap();
    log.write(&held).await.unwrap().append(["x"]).await.unwrap();
    let registry = Registry::new(c, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    setting.set(&Layer::Default, &1).await.unwrap();
    setting.stage(&Layer::Default, &["canary"], &2).await.unwrap();
    let discovery = Discovery::new(c, "/services").unwrap();
    let mut paths = Vec::from([held.path(), writing.path(), lease.path()].map(ToString::to_string));
    paths.push(format!("/queue/items/{item}"));
    paths.extend(["/double/ready", "/election/leader", "/tx/t"].map(String::from));
    paths.extend(["/semaphore/limit", "/counter", "/ids", "/log/state"].map(String::from));
    paths.push(format!("/log/operations/{:020}", 1));
    paths.push(slot.path().to_string());
    for path in c.list_recursive("/config").await.unwrap().entries {
        paths.push(format!("/config/{}", path.name));
    }
    make(c, "/semaphore/limit", "").await;
    for path in ["/counter", "/ids", "/lease-by-hand", "/election-by-hand/leader", "/services/db/a"]
    {
        make(c, path, "nonsense").await;
    }
    for path in &paths {
        c.set(path.as_str(), "\u{1}nonsense").await.unwrap();
    }
    let mut consumer = queue.consumer();
    let provider = discovery.provider("db", Strategy::Random).await.unwrap();
    all_fail!(|error: &Error| matches!(error, Error::Malformed { .. } | Error::Invalid { .. }), {
            "who holds a mutex" => Mutex::new(c, "/mutex")?.holder().await,
            "to ask for a mutex" => Mutex::new(c, "/mutex")?.revoke().await,
            "a reader" => ReadWriteLock::new(c, "/shared")?.read().await,
            "a leader" => Election::new(c, "/election")?.leader().await,
            "who wants to lead" => Election::new(c, "/election-by-hand")?.campaign("").await,
            "who looks who leads" => Election::new(c, "/election")?.observe().await?.next().await,
            "one of several leases" => slots.acquire("").await,
            "a layer's history" => setting.history(&Layer::Default).await?.remove(0),
            "what is staged" => setting.staged(&Layer::Default).await,
            "what is seen" => registry.follow(Place::new()).await?.get(&setting),
            "who has a lease" => Lease::new(c, "/lease", HOUR)?.holder().await,
            "a lease" => Lease::new(c, "/lease", HOUR)?.acquire("").await,
            "what is no lease" => Lease::new(c, "/lease-by-hand", HOUR)?.acquire("").await,
            "a double barrier" => DoubleBarrier::new(c, "/double", 1)?.enter().await,
            "a permit" => Semaphore::new(c, "/semaphore", 1)?.acquire().await,
            "how many permits" => Semaphore::new(c, "/semaphore", 1)?.limit().await,
            "a counter" => Counter::new(c, "/counter")?.add(1).await,
            "ids" => IdBlocks::new(c, "/ids", 2)?.next().await,
            "an item" => consumer.next().await,
            "a log" => log.follow().await,
            "a transaction" => transactions.decide("t").await,
            "a participant" => participant.next().await,
            "a setting" => setting.get(&Layer::Default).await,
            "a change of it" => setting.set(&Layer::Default, &2).await,
            "an instance" => provider.malformed()?.into_iter().try_for_each(Err::<(), _>),
    });
    assert!(matches!(provider.choose(), Err(Error::Empty { .. })));
    drop((inside, leading));
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn nodes_that_were_deleted_by_hand_and_tokens_from_the_past() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let c = &client;
    make(c, "/data", "").await;
    let held = soon(Mutex::new(c, "/mutex").unwrap().lock()).await.unwrap();
    let reading = soon(ReadWriteLock::new(c, "/shared").unwrap().read()).await.unwrap();
    let permit = soon(Semaphore::new(c, "/semaphore", 1).unwrap().acquire()).await.unwrap();
    let leading = soon(Election::new(c, "/election").unwrap().campaign("")).await.unwrap();
    let several = soon(MultiLock::new(c, ["/a", "/b"]).unwrap().lock()).await.unwrap();
    let lease = Lease::new(c, "/lease", HOUR).unwrap().acquire("").await.unwrap().unwrap();
    let inside = soon(DoubleBarrier::new(c, "/double", 1).unwrap().enter()).await.unwrap();
    let queue = Queue::new(c, "/queue").unwrap();
    queue.push("x").await.unwrap();
    let item = soon(queue.consumer().next()).await.unwrap();
    let mut parts = Partitioner::join(c, "/parts", "a", partitions()).await.unwrap();
    soon(parts.next()).await.unwrap();
    let log = Log::new(c, "/log").unwrap();
    let primary = soon(Mutex::new(c, "/primary").unwrap().lock()).await.unwrap();
    log.write(&primary).await.unwrap().append(["1", "2", "3"]).await.unwrap();
    let member = c.children("/double").await.unwrap();
    let member = member.iter().find(|name| *name != "ready").unwrap();
    let paths = [held.path(), reading.path(), permit.path(), leading.hold().path()];
    let mut paths: Vec<_> = paths.into_iter().map(ToString::to_string).collect();
    paths.extend([several.path().to_string(), lease.path().to_string()]);
    let other = Lease::new(c, "/lease-2", HOUR).unwrap().acquire("").await.unwrap().unwrap();
    paths.push(other.path().to_string());
    let work = Work::new(c, "/work").unwrap();
    let mut worker = work.worker("a").await.unwrap();
    work.submit("t", "").await.unwrap();
    let assigner = soon(Election::new(c, "/assigner").unwrap().campaign("")).await.unwrap();
    let assigning = work.clone();
    let assigning = tokio::spawn(async move { assigning.assign(&assigner).await });
    let Order::Begin(task) = soon(worker.next()).await.unwrap() else { panic!("no task") };
    paths.push(String::from("/work/tasks/t"));
    let transactions = TwoPhase::new(c, "/tx").unwrap();
    transactions.begin("t", &["a", "b"], "").await.unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    let Task::Prepare(prepared) = soon(participant.next()).await.unwrap() else { panic!("none") };
    participant.vote(&prepared, true).await.unwrap();
    paths.extend([item.path().to_string(), format!("/double/{member}")]);
    paths.extend([String::from("/parts/owners/p"), format!("/log/operations/{:020}", 2)]);
    let in_a_round = soon(DoubleBarrier::new(c, "/round", 1).unwrap().enter()).await.unwrap();
    paths.push(String::from("/round/ready"));
    for path in paths {
        c.delete(path.as_str()).await.unwrap();
    }
    c.delete_recursive("/tx/t").await.unwrap();
    let write = || c.multi().set("/data", "x", None);
    all_fail!(|error: &Error| matches!(error, Error::Lost { loss: Loss::Deleted | Loss::Expired, .. }), {
            "a write under a mutex" => held.guard(write()).await,
            "a write of a reader" => reading.guard(write()).await,
            "a write under a permit" => permit.guard(write()).await,
            "a write of a leader" => leading.guard(write()).await,
            "what a leader proclaims" => leading.proclaim("").await,
            "a write under several locks" => several.guard(write()).await,
            "a write under a lease" => lease.guard(write()).await,
            "a lease that goes on" => lease.clone().renew().await,
            "to leave" => inside.leave().await,
            "a write of a partition's owner" => parts.guard("p", write()).await,
            "a partition to release" => parts.release("p").await,
            "an append" => log.write(&held).await?.append(["x"]).await,
            "a mutex to release" => held.release().await,
            "a permit to release" => permit.release().await,
            "several locks to release" => several.release().await,
            "to resign" => leading.resign().await,
            "an item that is done" => item.done().await,
            "a lease to release" => other.release().await,
            "a task that is done" => worker.done(&task).await,
    });
    assigning.abort();
    assert_eq!(c.get("/data").await.unwrap().text(), Ok(""), "nothing was written");
    let mut follower = log.follow().await.unwrap();
    follower.next().await.unwrap();
    all_fail!(|error: &Error| matches!(error, Error::Gone { .. }), {
            "an operation that is gone" => follower.next().await,
            "to leave a round that is over" => in_a_round.leave().await,
            "a transaction that never was" => TwoPhase::new(c, "/tx")?.decide("t").await,
            "its decision" => TwoPhase::new(c, "/tx")?.decision("t").await,
            "what was to be prepared" => participant.next().await,
            "a vote for it" => participant.vote(&prepared, false).await,
            "to wait for the votes" => transactions.all_votes("t").await,
    });
    let mut fence = Fence::at(Token::new(7));
    let seen = SharedValue::new(c, "/value").unwrap().get().await.unwrap();
    SharedValue::new(c, "/value").unwrap().compare_and_set(&seen, "a").await.unwrap();
    all_fail!(|error: &Error| matches!(error, Error::StaleToken(_) | Error::Conflict { .. }), {
            "an old token" => fence.admit(Token::new(6)).map_err(Error::from),
            "an old value" => SharedValue::new(c, "/value")?.compare_and_set(&seen, "b").await,
    });
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn sessions_that_are_over() {
    let cluster = Cluster::start(1).await;
    let wire = Wire::to(&cluster.addresses()).await;
    let client = wire.client(Duration::from_secs(1)).await;
    let c = &client;
    make(c, "/data", "").await;
    let mut mutex = Mutex::new(c, "/mutex").unwrap();
    let held = soon(mutex.lock()).await.unwrap();
    let election = Election::new(c, "/election").unwrap();
    let leading = soon(election.campaign("")).await.unwrap();
    let mut observer = election.observe().await.unwrap();
    let mut latch = Election::new(c, "/election-2").unwrap().latch("");
    let lease = Lease::new(c, "/lease", HOUR).unwrap().acquire("").await.unwrap().unwrap();
    let inside = soon(DoubleBarrier::new(c, "/double", 1).unwrap().enter()).await.unwrap();
    let queue = Queue::new(c, "/queue").unwrap();
    queue.push("x").await.unwrap();
    let mut consumer = queue.consumer();
    let item = soon(consumer.next()).await.unwrap();
    let group = Group::new(c, "/group").unwrap();
    let member = group.join("a", "").await.unwrap();
    let members = group.members().await.unwrap();
    let mut ring = LiveRing::new(members.clone()).unwrap();
    let kept = KeptNode::ttl(c, "/ttl", "", HOUR).create().await.unwrap();
    let discovery = Discovery::new(c, "/services").unwrap();
    let _db = discovery.register("db", &Instance::new("a", "host:1")).await.unwrap();
    let provider = discovery.provider("db", Strategy::Random).await.unwrap();
    let mut parts = Partitioner::join(c, "/parts", "a", partitions()).await.unwrap();
    soon(parts.next()).await.unwrap();
    let work = Work::new(c, "/work").unwrap();
    let mut worker = work.worker("a").await.unwrap();
    let log = Log::new(c, "/log").unwrap();
    let mut writer = log.write(&held).await.unwrap();
    let mut follower = log.follow().await.unwrap();
    let transactions = TwoPhase::new(c, "/tx").unwrap();
    let mut participant = transactions.participant("a").await.unwrap();
    let registry = Registry::new(c, "/config").unwrap();
    let setting = registry.setting::<u32>("limit").unwrap();
    let cache = Cache::tree(c, "/data").await.unwrap();
    let barrier = Barrier::new(c, "/barrier").unwrap();

    let other = cluster.client().await;
    wire.cut();
    eventually("the session has expired", async || {
        other.exists("/group/a").await.unwrap().is_none().then_some(())
    })
    .await;
    wire.mend();
    let write = || c.multi().set("/data", "x", None);
    all_fail!(Error::is_final, {
            "a mutex" => Mutex::new(c, "/mutex")?.lock().await,
            "a mutex that is free" => Mutex::new(c, "/mutex")?.try_lock().await,
            "its holder" => Mutex::new(c, "/mutex")?.holder().await,
            "a reader" => ReadWriteLock::new(c, "/shared")?.read().await,
            "a writer" => ReadWriteLock::new(c, "/shared")?.write().await,
            "a permit" => Semaphore::new(c, "/semaphore", 1)?.acquire().await,
            "several locks" => MultiLock::new(c, ["/a", "/b"])?.lock().await,
            "a write under a mutex" => held.guard(write()).await,
            "a write of a leader" => leading.guard(write()).await,
            "what a leader proclaims" => leading.proclaim("").await,
            "a candidate" => election.campaign("").await,
            "who leads" => election.leader().await,
            "who has a lease" => Lease::new(c, "/lease", HOUR)?.holder().await,
            "a write under a lease" => lease.guard(write()).await,
            "leases" => MultiLease::new(c, "/leases", 2, HOUR)?.acquire("").await,
            "a barrier" => barrier.wait().await,
            "a barrier to raise" => barrier.raise().await,
            "to enter" => DoubleBarrier::new(c, "/double", 1)?.enter().await,
            "to leave" => inside.leave().await,
            "a push" => queue.push("x").await,
            "how many items" => queue.len().await,
            "an item" => consumer.next().await,
            "an item that is done" => item.done().await,
            "a member" => group.join("b", "").await,
            "a member's data" => member.set("x").await,
            "all members" => members.all(),
            "a ring" => ring.changed().await,
            "a kept node" => kept.set("x").await,
            "an instance" => provider.choose(),
            "a partition" => parts.next().await,
            "a write of a partition's owner" => parts.guard("p", write()).await,
            "a task" => work.submit("t", "").await,
            "a worker" => worker.next().await,
            "an append" => writer.append(["x"]).await,
            "an operation" => follower.next().await,
            "a transaction" => transactions.begin("t", &["a"], "").await,
            "a participant" => participant.next().await,
            "a setting" => setting.get(&Layer::Default).await,
            "a change of it" => setting.set(&Layer::Default, &1).await,
            "a cache" => cache.get("/data"),
            "a counter" => Counter::new(c, "/counter")?.add(1).await,
            "ids" => IdBlocks::new(c, "/ids", 2)?.next().await,
            "a value" => SharedValue::new(c, "/value")?.get().await,
            "a name" => Names::new(c, "/names")?.resolve("a").await,
            "a name to bind" => Names::new(c, "/names")?.bind("a", "").await,
            "a name for good" => Names::new(c, "/names")?.set("a", "").await,
            "a service" => discovery.register("db", &Instance::new("b", "host:2")).await,
            "a lease to have" => Lease::new(c, "/lease-2", HOUR)?.acquire("").await,
            "a lease that goes on" => lease.clone().renew().await,
            "who assigns" => work.assign(&leading).await,
            "tasks" => work.open().await,
            "a decision" => transactions.decide("t").await,
            "a log to follow" => log.follow().await,
            "a log to write" => log.write(&held).await,
            "an id in a queue" => queue.remove("x").await,
            "settings to follow" => registry.follow(Place::new()).await,
            "a setting's history" => setting.history(&Layer::Default).await,
            "a value to stage" => setting.stage(&Layer::Default, &["canary"], &1).await,
            "a cache to open" => Cache::tree(c, "/data").await,
            "a member of partitions" => Partitioner::join(c, "/parts-2", "a", partitions()).await,
    });
    // What is told in a stream ends; what was seen before the end may come first.
    let error = soon(async {
        loop {
            if let Err(error) = latch.changed().await {
                return error;
            }
        }
    });
    assert!(error.await.is_final(), "a latch");
    let error = soon(async {
        loop {
            if let Err(error) = observer.next().await {
                return error;
            }
        }
    });
    assert!(error.await.is_final(), "an observer");
    assert!(!held.is_held() && !leading.is_held() && mutex.lock().await.is_err());
    assert_eq!(soon(held.lost()).await, Loss::Expired);
    let error = soon(held.release()).await.unwrap_err();
    assert!(error.is_final(), "{error}");
}
