//! What happens to the ensemble and to the network while a test runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conclave_client::Client;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::sleep;

use crate::harness::{Cluster, DEADLINE};

/// Dice with a seed, which is printed so that a run can be repeated.
pub(crate) struct Dice(u64);

impl Dice {
    /// The seed of `CONCLAVE_SEED`, or one of the clock.
    pub(crate) fn new() -> Dice {
        let given = std::env::var("CONCLAVE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| getrandom::u64().unwrap());
        println!("CONCLAVE_SEED={seed}");
        Dice(seed)
    }

    /// Dice of their own, for another task.
    pub(crate) fn split(&mut self) -> Dice {
        Dice(self.roll())
    }

    /// A number below the bound.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// How many rounds of faults a test goes through; more by `CONCLAVE_ROUNDS`.
pub(crate) fn rounds() -> u64 {
    std::env::var("CONCLAVE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3)
}

/// A round of faults: one server dies, or freezes for a while, the leader more often than others.
pub(crate) async fn strike(cluster: &mut Cluster, dice: &mut Dice) {
    let leader = cluster.leader().await;
    let ids = cluster.ids();
    let victim = match dice.below(3) {
        0 => ids[usize::try_from(dice.below(ids.len() as u64)).unwrap()],
        _ => leader,
    };
    let pause = Duration::from_millis(300 + dice.below(1200));
    if dice.below(3) == 0 {
        cluster.pause(victim);
        sleep(pause).await;
        cluster.resume(victim);
    } else {
        cluster.kill(victim);
        sleep(pause).await;
        cluster.launch(victim);
    }
    cluster.wait_until_serving().await;
}

/// A network between a client and the servers, which can be cut.
pub(crate) struct Wire {
    links: Arc<Mutex<Option<Vec<AbortHandle>>>>,
    /// Where clients connect.
    pub(crate) addresses: String,
    tasks: Vec<JoinHandle<()>>,
    carried: Arc<AtomicU64>,
}

impl Wire {
    /// A wire to these servers.
    pub(crate) async fn to(servers: &str) -> Wire {
        let links = Arc::new(Mutex::new(Some(Vec::new())));
        let carried = Arc::new(AtomicU64::new(0));
        let (mut addresses, mut tasks) = (Vec::new(), Vec::new());
        for server in servers.split(',') {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap().to_string());
            let (links, carried) = (Arc::clone(&links), Arc::clone(&carried));
            tasks.push(tokio::spawn(accept(listener, server.to_owned(), links, carried)));
        }
        Wire { links, addresses: addresses.join(","), tasks, carried }
    }

    /// A session over this wire.
    pub(crate) async fn client(&self, session_timeout: Duration) -> Client {
        Client::builder()
            .servers(&self.addresses)
            .session_timeout(session_timeout)
            .operation_timeout(DEADLINE)
            .connect_timeout(DEADLINE)
            .connect()
            .await
            .unwrap()
    }

    /// Cuts all connections; new ones are closed at once until it is mended.
    pub(crate) fn cut(&self) {
        for link in self.links.lock().unwrap().take().into_iter().flatten() {
            link.abort();
        }
    }

    /// Lets connections through again.
    pub(crate) fn mend(&self) {
        self.links.lock().unwrap().get_or_insert_default();
    }

    /// How many connections it has carried.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn accept(
    listener: TcpListener,
    server: String,
    links: Arc<Mutex<Option<Vec<AbortHandle>>>>,
    carried: Arc<AtomicU64>,
) {
    while let Ok((mut near, _)) = listener.accept().await {
        let server = server.clone();
        if let Some(links) = &mut *links.lock().unwrap() {
            carried.fetch_add(1, Ordering::Relaxed);
            let link = tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(server).await {
                    copy_bidirectional(&mut near, &mut far).await.ok();
                }
            });
            links.push(link.abort_handle());
        }
    }
}
