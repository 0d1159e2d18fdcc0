//! Passwords: who has one is somebody; who guesses is slowed down, and disturbs nobody. What came of
//! it is in the audit log, without the passwords.

use std::fs::DirEntry;
use std::path::Path;
use std::sync::LazyLock;

use conclave::limits::AUDIT_ATTEMPTS;
use conclave::server::hash_password;
use conclave_proto::{
    Acl, ClientMessage, CreateMode, ErrorCode, Identity, Op, Perms, Reply, ServerMessage, ZPath,
};
use serde_json::Value;

use crate::client::{Client, get, path};
use crate::server::{Server, wait_for};

static ALICE: LazyLock<String> = LazyLock::new(|| hash_password(b"wonder:land"));
const CHECKS: &str = "conclave_password_checks_total";

struct Guarded {
    server: Server,
    dir: tempfile::TempDir,
}

impl Guarded {
    /// A server that knows the passwords of two users; one of them may do everything.
    fn start() -> Guarded {
        Guarded::start_with(&[])
    }

    fn start_with(more: &[&str]) -> Guarded {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("conclave.toml");
        let hash = ALICE.as_str();
        let root = hash_password(b"root");
        let users = format!(
            "[[users]]\nname = 'alice'\nhash = '{hash}'\n\
             [[users]]\nname = 'root'\nhash = '{root}'\nsuperuser = true\n"
        );
        std::fs::write(&file, users).unwrap();
        let flags = ["--client", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"];
        let flags = [&flags[..], &[file.to_str().unwrap()], more].concat();
        let server = Server::start_in(&dir.path().join("data"), &flags);
        wait_for("the server to serve", || server.get("/ready").starts_with("ready").then_some(()));
        Guarded { server, dir }
    }

    /// The lines that the newest files of the audit log hold; the last one may be on its way.
    fn log(&self) -> String {
        let read = |name| {
            let path = self.dir.path().join("data").join(name);
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect::<String>()
        };
        ["audit.log", "audit.acl.log"].map(read).concat()
    }

    /// The records of one kind, once there are so many of them.
    fn records(&self, event: &str, count: usize) -> Vec<Value> {
        wait_for(event, || {
            let log = self.log();
            let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let records: Vec<_> = records.filter(|record| record["event"] == event).collect();
            (records.len() >= count).then_some(records)
        })
    }
}

fn auth(credentials: &str) -> Op {
    let credentials = credentials.to_owned().into();
    Op::Authenticate { scheme: "password".into(), credentials }
}

fn identity(scheme: &str, id: &str) -> Identity {
    Identity { scheme: scheme.into(), id: id.into() }
}

fn private(at: &str) -> Op {
    let acl = [Acl { perms: Perms::ALL, identity: identity("password", "alice") }].into();
    Op::Create { path: path(at), data: None, acl, mode: CreateMode::PERSISTENT }
}

fn code(answer: Result<Reply, conclave_proto::Fault>) -> Result<(), ErrorCode> {
    answer.map(|_| ()).map_err(|fault| fault.code)
}

#[test]
fn a_password_names_a_user_whom_acls_can_name() {
    let guarded = Guarded::start();
    let mut alice = Client::open(guarded.server.client);
    // What is asked right behind it is asked in the new name.
    let shown = alice.ask(auth("alice:wonder:land"));
    let created = alice.ask(private("/hers"));
    assert_eq!(alice.answer(shown), Ok(Reply::Done));
    alice.answer(created).unwrap();
    let Ok(Reply::Identities(identities)) = alice.call(Op::WhoAmI) else { panic!("nobody") };
    assert!(identities.contains(&identity("password", "alice")), "{identities:?}");
    assert!(identities.iter().all(|identity| identity.scheme != "super"), "{identities:?}");

    let mut other = Client::open(guarded.server.client);
    assert_eq!(code(other.call(get("/hers"))), Err(ErrorCode::NoAuth));
    assert_eq!(code(other.call(auth("root:root"))), Ok(()));
    assert_eq!(code(other.call(get("/hers"))), Ok(()), "a superuser may do everything");
}

#[test]
fn who_has_no_password_is_nobody() {
    let guarded = Guarded::start();
    let mut client = Client::open(guarded.server.client);
    for wrong in ["alice:wonderland", "alice:", "nobody:wonder:land", "alice", ":", ""] {
        assert_eq!(code(client.call(auth(wrong))), Err(ErrorCode::AuthFailed), "{wrong:?}");
    }
    let Ok(Reply::Identities(identities)) = client.call(Op::WhoAmI) else { panic!("nobody") };
    assert!(identities.iter().all(|identity| identity.scheme == "ip"), "{identities:?}");
}

/// Many guesses at once: they cost one check at a time, and nobody else waits for them. Who has
/// shown the password once is known without another check, however many guess.
#[test]
fn guessing_disturbs_nobody() {
    let guarded = Guarded::start();
    let address = guarded.server.client;
    let mut alice = Client::open(address);
    assert_eq!(code(alice.call(auth("alice:wonder:land"))), Ok(()));
    assert_eq!(guarded.server.metric(CHECKS), 1);
    let mut guessing: Vec<Client> = (0..400).map(|_| Client::open(address)).collect();
    for (number, client) in guessing.iter_mut().enumerate() {
        client.ask(auth(&format!("alice:{number}")));
    }
    for _ in 0..20 {
        let mut again = Client::open(address);
        assert_eq!(code(again.call(auth("alice:wonder:land"))), Ok(()));
    }
    alice.call(private("/hers")).unwrap();
    // Each of them came while at most one guess after the other was checked, with a pause between.
    assert!(guarded.server.metric(CHECKS) < 100, "{}", guarded.server.metric(CHECKS));
    // Those beyond the bound are sent away at once, and the others in time.
    for client in guessing.iter_mut().rev().take(100) {
        let last = client.last_words();
        assert!(matches!(last, Some(ServerMessage::GoAway { .. })), "{last:?}");
    }
}

/// What the server makes a client wait for is no silence of either: pings that stand behind it are
/// answered.
#[test]
fn who_waits_for_a_check_and_pings_keeps_the_session() {
    let guarded = Guarded::start();
    let address = guarded.server.client;
    let mut guessing: Vec<Client> = (0..6).map(|_| Client::open(address)).collect();
    let guesses: Vec<_> = guessing.iter_mut().map(|client| client.ask(auth("alice:?"))).collect();
    let (mut alice, connected) = Client::open_for(address, 1);
    assert!(connected.timeout_ms <= 1000, "{} ms are too many for this test", connected.timeout_ms);
    let shown = alice.ask(auth("alice:wonder:land"));
    // There is a pause behind each guess, and all of them are longer than the session's timeout.
    for (client, guess) in guessing.iter_mut().zip(guesses) {
        assert_eq!(code(client.answer(guess)), Err(ErrorCode::AuthFailed));
        alice.say(&ClientMessage::Ping);
        assert!(matches!(alice.hear(), Some(ServerMessage::Pong { .. })));
    }
    assert_eq!(alice.answer(shown), Ok(Reply::Done));
}

#[test]
fn the_audit_log_has_who_did_what_and_no_secret() {
    let guarded = Guarded::start();
    let mut client = Client::open(guarded.server.client);
    assert_eq!(code(client.call(auth("alice:guess"))), Err(ErrorCode::AuthFailed));
    assert_eq!(code(client.call(auth("alice:wonder:land"))), Ok(()));
    let digest =
        Op::Authenticate { scheme: "digest".into(), credentials: "bob:builder".to_owned().into() };
    assert_eq!(code(client.call(digest)), Ok(()));
    client.call(private("/hers")).unwrap();
    let acl = [Acl { perms: Perms::READ, identity: identity("digest", "bob:c2VjcmV0") }];
    let set = |at: &str| Op::SetAcl { path: path(at), acl: acl.clone().into(), version: None };
    let both = Op::Multi { conditions: vec![], then: vec![set("/hers")], otherwise: vec![] };
    client.call(both).unwrap();
    assert_eq!(code(client.call(set("/missing"))), Err(ErrorCode::NoNode));

    let started = &guarded.records("started", 1)[0];
    assert_eq!(started["server"], 1);
    let failed = &guarded.records("authentication_failed", 1)[0];
    assert_eq!((&failed["scheme"], &failed["id"]), (&"password".into(), &"alice".into()));
    assert_eq!(failed["address"], "127.0.0.1");
    let shown = guarded.records("authenticated", 2);
    assert_eq!(shown[1]["id"], "bob");
    assert_eq!(shown[0]["session"], shown[1]["session"]);
    let changes = guarded.records("acl_change", 2);
    assert_eq!(changes[0]["path"], "/hers");
    assert_eq!(changes[0]["acl"][0], "digest:bob:x:00001");
    assert!(changes[0]["error"].is_null() && changes[1]["error"].is_string(), "{changes:?}");
    let by: Vec<_> = changes[0]["by"].as_array().unwrap().iter().collect();
    assert!(by.contains(&&"password:alice".into()) && by.contains(&&"digest:bob".into()));
    let log = guarded.log();
    for secret in ["wonder", "guess", "builder", "c2VjcmV0", "argon2"] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
    for name in ["audit.log", "audit.acl.log"] {
        is_private(&guarded.dir.path().join("data").join(name));
    }
}

/// Attempts cost nothing: they must not fill the files, in which older records give way to them.
#[test]
fn a_flood_of_attempts_leaves_the_audit_log_readable() {
    let guarded = Guarded::start();
    let mut client = Client::open(guarded.server.client);
    let digest =
        || Op::Authenticate { scheme: "digest".into(), credentials: "x:y".to_owned().into() };
    let asked: Vec<_> = (0..20 * AUDIT_ATTEMPTS).map(|_| client.ask(digest())).collect();
    asked.into_iter().for_each(|xid| drop(client.answer(xid).unwrap()));
    client.call(Op::SetAcl { path: path("/"), acl: Acl::open(), version: None }).unwrap();
    guarded.records("acl_change", 1);
    let kept = guarded.records("authenticated", 1).len() as u64;
    // A new minute may have begun.
    assert!(kept <= 2 * AUDIT_ATTEMPTS, "{kept} records");
}

/// Who may change ACLs may do so as often as he likes: each change is kept, and pushes out others alone.
#[test]
fn a_flood_of_acl_changes_pushes_out_nothing_but_such_changes() {
    let guarded = Guarded::start_with(&["--set", "audit.max_mb=1"]);
    let mut client = Client::open(guarded.server.client);
    client.call(auth("alice:wonder:land")).unwrap();
    let long = path(&format!("/{}", "x".repeat(3000)));
    let change = |at: &ZPath| Op::SetAcl { path: at.clone(), acl: Acl::open(), version: None };
    let asked: Vec<_> = (0..500).map(|_| client.ask(change(&long))).collect();
    for xid in asked {
        assert_eq!(code(client.answer(xid)), Err(ErrorCode::NoNode));
    }
    client.call(change(&path("/"))).unwrap();
    wait_for("the last of them", || {
        let last = |record: &Value| record["path"] == "/";
        guarded.records("acl_change", 1).iter().any(last).then_some(())
    });
    assert_eq!(guarded.records("authenticated", 1)[0]["id"], "alice");
    guarded.records("started", 1);
    let files = std::fs::read_dir(guarded.dir.path().join("data")).unwrap().map(Result::unwrap);
    let is_log = |file: &DirEntry| file.file_name().to_str().unwrap().starts_with("audit.");
    let bytes = files.filter(is_log).map(|file| file.metadata().unwrap().len()).sum::<u64>();
    assert!(bytes > 300 << 10 && bytes <= 1 << 20, "{bytes} bytes");
}

fn is_private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
}

/// What is printed of a request, in a log or by a test that fails, has no password in it.
#[test]
fn credentials_are_not_printed() {
    let printed = format!("{:?}", auth("alice:wonder:land"));
    assert!(printed.contains("***") && !printed.contains("wonder"), "{printed}");
}
