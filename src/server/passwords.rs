//! The scheme `password`: users whose passwords the configuration has as slow, salted hashes.
//!
//! To check a password takes tens of milliseconds of a processor on purpose, and anybody may ask for
//! it. So one thread does that and nothing else; an address has one check at a time, waits after a
//! failed one, and is refused beyond a few that wait. Who was found right once is recognised by a
//! keyed fast hash that never leaves this process's memory: when a thousand clients of a service
//! come back after a server's death, one of them is checked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use bytes::Bytes;
use conclave_proto::{ErrorCode, Identity};
use prometheus_client::metrics::counter::Counter;
use siphasher::sip128::{Hasher128, SipHasher24};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::limits::{IDENTITY_BYTES, PASSWORD_CHECKS, PASSWORD_CHECKS_PER_ADDRESS};
use crate::net::{Crowd, origin};

use super::clock;
use super::settings::User;

/// The scheme's name.
pub(super) const SCHEME: &str = "password";
/// How long a client waits for its check before it is told that there is too much to do.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long an address waits after a wrong password.
const PENALTY: Duration = Duration::from_millis(500);

/// Hashes a password as the configuration takes it, with fresh salt; a quarter of a second at most.
pub fn hash_password(password: &[u8]) -> String {
    let salt = clock::random::<16>();
    let hash: PasswordHash = Argon2::default()
        .hash_password_with_salt(password, &salt)
        .expect("the parameters are the crate's own, and the salt is long enough");
    hash.to_string()
}

/// Whether it is a hash of the kind that [`hash_password`] makes.
pub fn is_password_hash(hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| {
        hash.algorithm.as_str() == "argon2id" && hash.salt.is_some() && hash.hash.is_some()
    })
}

/// Checks passwords.
#[derive(Debug)]
pub(super) struct Passwords {
    users: BTreeMap<String, User>,
    jobs: Sender<Job>,
    /// Those that are checked or wait for it.
    waiting: Crowd,
    /// One check at a time for each address.
    turns: RefCell<BTreeMap<IpAddr, Rc<Semaphore>>>,
    /// What right passwords look like under `key`.
    known: RefCell<BTreeMap<String, u128>>,
    key: [u8; 16],
    checks: Counter,
}

#[derive(Debug)]
struct Job {
    /// `None`: there is no such user, which must not show in how long the answer takes.
    hash: Option<String>,
    password: Bytes,
    verdict: oneshot::Sender<bool>,
}

impl Passwords {
    /// Knows these users.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub(super) fn start(users: &[User], checks: Counter) -> io::Result<Rc<Passwords>> {
        let (jobs, queue) = channel();
        if !users.is_empty() {
            thread::Builder::new().name("passwords".into()).spawn(move || check_all(&queue))?;
        }
        Ok(Rc::new(Passwords {
            users: users.iter().map(|user| (user.name.clone(), user.clone())).collect(),
            jobs,
            waiting: Crowd::new(PASSWORD_CHECKS, PASSWORD_CHECKS_PER_ADDRESS),
            turns: RefCell::default(),
            known: RefCell::default(),
            key: clock::random(),
            checks,
        }))
    }

    /// Whom `user:password` names, and whether it is right: then, who that client is.
    pub(super) async fn check(
        self: &Rc<Self>,
        from: SocketAddr,
        credentials: &Bytes,
    ) -> (String, Result<Vec<Identity>, ErrorCode>) {
        let colon = credentials.iter().position(|byte| *byte == b':');
        let Some((name, password)) = colon.and_then(|colon| {
            let name = std::str::from_utf8(&credentials[..colon]).ok()?;
            Some((name.to_owned(), credentials.slice(colon + 1..)))
        }) else {
            return (String::new(), Err(ErrorCode::AuthFailed));
        };
        if self.users.is_empty() || name.is_empty() || name.len() > IDENTITY_BYTES {
            return (String::new(), Err(ErrorCode::AuthFailed));
        }
        let verdict = if self.is_known(&name, &password) {
            Ok(true)
        } else {
            self.verdict(origin(from.ip()), &name, password).await
        };
        let result = match verdict {
            Ok(true) => Ok(self.identities(&name)),
            Ok(false) => Err(ErrorCode::AuthFailed),
            Err(code) => Err(code),
        };
        (name, result)
    }

    async fn verdict(
        self: &Rc<Self>,
        from: IpAddr,
        name: &str,
        password: Bytes,
    ) -> Result<bool, ErrorCode> {
        let Some(place) = self.waiting.admit(from) else { return Err(ErrorCode::Throttled) };
        let (answer, answered) = oneshot::channel();
        let (this, name) = (self.clone(), name.to_owned());
        // A task of its own: who goes away before the answer still has had its turn.
        spawn_local(async move {
            let turn = this.turn(from);
            let permit = turn.acquire().await.expect("nobody closes it");
            // Nothing is checked for somebody who has given up.
            if !answer.is_closed() {
                let right = this.slowly(&name, password).await;
                answer.send(right).ok();
                if !right {
                    sleep(PENALTY).await;
                }
            }
            drop((permit, place));
            drop(turn);
            this.end_turn(from);
        });
        match timeout(DEADLINE, answered).await {
            Ok(Ok(right)) => Ok(right),
            Ok(Err(_)) | Err(_) => Err(ErrorCode::Throttled),
        }
    }

    async fn slowly(&self, name: &str, password: Bytes) -> bool {
        if self.is_known(name, &password) {
            return true;
        }
        self.checks.inc();
        let (verdict, decided) = oneshot::channel();
        let hash = self.users.get(name).map(|user| user.hash.reveal().to_owned());
        let job = Job { hash, password: password.clone(), verdict };
        let right = self.jobs.send(job).is_ok() && decided.await.unwrap_or(false);
        if right {
            self.known.borrow_mut().insert(name.to_owned(), self.fingerprint(name, &password));
        }
        right
    }

    fn is_known(&self, name: &str, password: &[u8]) -> bool {
        self.known.borrow().get(name) == Some(&self.fingerprint(name, password))
    }

    fn fingerprint(&self, name: &str, password: &[u8]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_usize(name.len());
        hasher.write(name.as_bytes());
        hasher.write(password);
        hasher.finish128().as_u128()
    }

    fn turn(&self, from: IpAddr) -> Rc<Semaphore> {
        let mut turns = self.turns.borrow_mut();
        turns.entry(from).or_insert_with(|| Rc::new(Semaphore::new(1))).clone()
    }

    fn end_turn(&self, from: IpAddr) {
        let mut turns = self.turns.borrow_mut();
        if turns.get(&from).is_some_and(|turn| Rc::strong_count(turn) == 1) {
            turns.remove(&from);
        }
    }

    fn identities(&self, name: &str) -> Vec<Identity> {
        let superuser = self.users.get(name).is_some_and(|user| user.superuser);
        let own = Identity { scheme: SCHEME.into(), id: name.into() };
        let all = superuser.then(|| Identity { scheme: "super".into(), id: String::new() });
        all.into_iter().chain([own]).collect()
    }
}

/// The thread that checks.
fn check_all(jobs: &Receiver<Job>) {
    let nobody = hash_password(b"");
    while let Ok(Job { hash, password, verdict }) = jobs.recv() {
        if verdict.is_closed() {
            continue;
        }
        let is_right = |hash: &str| Argon2::default().verify_password(&password, hash).is_ok();
        let right = match &hash {
            Some(hash) => is_right(hash),
            None => {
                is_right(&nobody);
                false
            }
        };
        // Whoever asked may be gone.
        verdict.send(right).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_salted_and_slow_ones() {
        let (one, other) = (hash_password(b"secret"), hash_password(b"secret"));
        assert_ne!(one, other);
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert!(is_password_hash(&one));
        assert!(!is_password_hash("secret") && !is_password_hash("$argon2id$v=19$m=8,t=1,p=1"));
        assert!(Argon2::default().verify_password(b"secret", one.as_str()).is_ok());
        assert!(Argon2::default().verify_password(b"Secret", one.as_str()).is_err());
    }
}
