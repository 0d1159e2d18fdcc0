//! Sessions that only their server knows, until they write.

use conclave_proto::request::Page;
use conclave_proto::{Acl, CreateMode, EventKind, Op, WatchId, ZPath};

use crate::connect::{Told, Wire};
use crate::server::{Server, wait_for};

fn server() -> Server {
    let server = Server::start_with(&["--set", "sessions.local=true"]);
    wait_for("the server to serve", || server.get("/ready").starts_with("ready").then_some(()));
    server
}

fn status(server: &Server, key: &str) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_str(&server.get("/status")).unwrap();
    status[key].clone()
}

fn path(text: &str) -> ZPath {
    ZPath::new(text).unwrap()
}

fn get(at: &str) -> Op {
    Op::Get { path: path(at), watch: None }
}

fn create(at: &str, mode: CreateMode) -> Op {
    Op::Create { path: path(at), data: None, acl: Acl::open(), mode }
}

#[test]
fn to_open_to_read_to_be_told_and_to_close_takes_no_transaction() {
    let server = server();
    for wire in Wire::ALL {
        let mut writer = wire.dial(&server);
        let at = format!("/{wire:?}").replace(['(', ')'], "-");
        assert!(writer.ask(&create(&at, CreateMode::PERSISTENT)).result.is_ok());
        let before = status(&server, "applied_zxid");

        let mut reader = wire.dial(&server);
        assert!(reader.ask(&get(&at)).result.is_ok());
        assert!(reader.ask(&get("/none")).result.is_err());
        let page = Page::default();
        let children = Op::Children { path: path("/"), watch: None, page };
        assert!(reader.ask(&children).result.is_ok());
        assert!(reader.ask(&Op::Sync { path: path("/") }).result.is_ok());
        let watch = Op::Get { path: path(&at), watch: Some(WatchId(1)) };
        assert!(reader.ask(&watch).result.is_ok());
        assert_eq!(status(&server, "unopened_sessions"), 1, "{wire:?}");
        assert!(wire.dial(&server).ask(&Op::CloseSession).result.is_ok());
        assert_eq!(status(&server, "applied_zxid"), before, "{wire:?}");

        let set = Op::SetData { path: path(&at), data: None, version: None };
        let zxid = writer.ask(&set).zxid;
        let told = Told { zxid, kind: EventKind::DataChanged, path: at };
        assert_eq!(reader.told(), [told], "{wire:?}");
        assert!(reader.ask(&Op::CloseSession).result.is_ok());
        assert_eq!(status(&server, "unopened_sessions"), 0, "{wire:?}");
        assert!(writer.ask(&Op::CloseSession).result.is_ok());
        assert_eq!(status(&server, "sessions"), 0, "{wire:?}");
    }
}

#[test]
fn the_first_write_opens_the_session_and_everything_is_as_with_any_other() {
    let server = server();
    for wire in Wire::ALL {
        let mut owner = wire.dial(&server);
        let mut other = wire.dial(&server);
        assert!(owner.ask(&get("/")).result.is_ok());
        assert!(owner.ask(&create("/e", CreateMode::EPHEMERAL)).result.is_ok());
        assert_eq!(status(&server, "sessions"), 1, "{wire:?}");
        let ephemerals = Op::Ephemerals { prefix: String::new() };
        let own = owner.ask(&ephemerals).result.unwrap();
        let others = other.ask(&ephemerals).result.unwrap();
        assert_ne!(own, others, "the node belongs to the session that made it");
        assert!(other.ask(&create("/e", CreateMode::EPHEMERAL)).result.is_err());
        assert_eq!(status(&server, "sessions"), 2, "a write that fails is a write");
        assert!(owner.ask(&Op::CloseSession).result.is_ok());
        assert!(other.ask(&get("/e")).result.is_err(), "it went with its session");
        assert!(other.ask(&create("/e", CreateMode::EPHEMERAL)).result.is_ok());
        assert!(other.ask(&Op::CloseSession).result.is_ok());
        assert_eq!(status(&server, "sessions"), 0, "{wire:?}");
    }
}
