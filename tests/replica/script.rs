//! The commands of the scripts.

use bytes::Bytes;
use conclave::replica::{Input, Strain};
use conclave_proto::request::{Page, ReadLevel};
use conclave_proto::{
    Acl, ClientMessage, CreateMode, Identity, Lifetime, Op, Perms, ServerId, WatchId, WatchKind,
    ZPath, Zxid,
};

use crate::world::{World, server};

/// Carry out a script: its commands, each followed by what came of it.
pub(crate) fn run(script: &str) -> String {
    let mut world: Option<World> = None;
    let mut out = String::new();
    for line in script.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if line.starts_with('#') || line.is_empty() {
                out.push_str(line);
                out.push('\n');
            }
            continue;
        };
        out.push_str(line);
        out.push('\n');
        let words: Vec<&str> = command.split_whitespace().collect();
        if let ["servers", count, ref rest @ ..] = words[..] {
            let mut new = World::with(number(count), rest.first().copied().unwrap_or_default());
            new.elect();
            world = Some(new);
        } else {
            carry_out(world.as_mut().expect("a script begins with `servers`"), command, &words);
        }
        let world = world.as_mut().expect("there are servers");
        world.settle();
        for line in world.log.drain(..) {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

fn carry_out(world: &mut World, command: &str, words: &[&str]) {
    match *words {
        ["elect"] => world.elect(),
        ["pass", ms] => world.pass(number(ms)),
        ["crash", id] => {
            let id = the_server(world, id);
            world.crash(id);
        }
        ["start", id] => {
            let id = the_server(world, id);
            world.start(id);
        }
        ["cut", a, b] => world.cut(the_server(world, a), the_server(world, b)),
        ["heal", a, b] => world.heal(the_server(world, a), the_server(world, b)),
        ["hold", a, b] => world.hold(the_server(world, a), the_server(world, b), true),
        ["release", a, b] => world.hold(the_server(world, a), the_server(world, b), false),
        ["pause", id] => world.pause(the_server(world, id), true),
        ["resume", id] => world.pause(the_server(world, id), false),
        ["slow-disk", id] => world.slow_disk(the_server(world, id), true),
        ["good-disk", id] => world.slow_disk(the_server(world, id), false),
        ["low-space", id] => {
            let strain = Strain { low_space: true, is_behind: false };
            world.step(the_server(world, id), Input::Strain(strain));
        }
        ["behind", id] => {
            let strain = Strain { low_space: false, is_behind: true };
            world.step(the_server(world, id), Input::Strain(strain));
        }
        ["space" | "caught-up", id] => {
            world.step(the_server(world, id), Input::Strain(Strain::default()));
        }
        ["hand-over", id] => world.step(the_server(world, id), Input::HandOver),
        ["checkpoint", id] => world.checkpoint(the_server(world, id)),
        ["status"] => status(world),
        [name, "dial", at, ref rest @ ..] => {
            let timeout = rest.first().map_or(10_000, |timeout| number(timeout));
            world.dial(name, the_server(world, at), timeout);
        }
        [name, "hang-up"] => world.hang_up(name),
        [name, "forget-session"] => client(world, name).session = None,
        [name, "wrong-secret"] => {
            let client = client(world, name);
            let (session, _) = client.session.expect("it has a session");
            client.session = Some((session, conclave_proto::Secret::new([255; 16])));
        }
        [name, "steals-session-of", other] => {
            let session = world.clients[other].session;
            client(world, name).session = session;
        }
        [name, "has-seen", zxid] => client(world, name).last_zxid = the_zxid(zxid),
        [name, "stays"] => client(world, name).stays = true,
        [name, "accepts-read-only"] => client(world, name).accepts_read_only = true,
        [name, "unnumbered"] => client(world, name).numbered = false,
        [name, "is", identity] => client(world, name).identities = vec![identify(identity)],
        [name, "ping"] => world.say(name, ClientMessage::Ping),
        [name, ..] => {
            let requests = command[name.len()..].split(';');
            for request in requests {
                let words: Vec<&str> = request.split_whitespace().collect();
                ask(world, name, &words);
            }
        }
        [] => panic!("an empty command"),
    }
}

/// `#7 set /a x`: under the number 7; `linearizable get /a`: at that level.
fn ask(world: &mut World, name: &str, words: &[&str]) {
    let (xid, words) = match words {
        [first, rest @ ..] if first.starts_with('#') => (Some(number(&first[1..])), rest),
        words => (None, words),
    };
    let (level, words) = match words {
        ["linearizable", rest @ ..] => (ReadLevel::Linearizable, rest),
        ["at-least", zxid, rest @ ..] => (ReadLevel::AtLeast(the_zxid(zxid)), rest),
        words => (ReadLevel::Local, words),
    };
    let op = operation(words);
    match xid {
        Some(xid) => world.ask_as(name, xid, level, op),
        None => {
            world.ask(name, level, op);
        }
    }
}

fn operation(words: &[&str]) -> Op {
    match *words {
        ["create", at, ref rest @ ..] => create(at, CreateMode::PERSISTENT, rest),
        ["create-ephemeral", at, ref rest @ ..] => create(at, CreateMode::EPHEMERAL, rest),
        ["create-container", at] => {
            let mode = CreateMode { lifetime: Lifetime::Container, ..CreateMode::default() };
            create(at, mode, &[])
        }
        ["create-sequential", at] => create(at, CreateMode::PERSISTENT_SEQUENTIAL, &[]),
        ["create-in-line", at] => {
            let mode = CreateMode { in_line: true, ..CreateMode::EPHEMERAL_SEQUENTIAL };
            create(at, mode, &[])
        }
        ["create-for", who, at] => {
            let acl = [Acl { perms: Perms::ALL, identity: identify(who) }].into();
            Op::Create { path: path(at), data: None, acl, mode: CreateMode::PERSISTENT }
        }
        ["delete", at] => Op::Delete { path: path(at), version: None },
        ["set", at, value] => {
            Op::SetData { path: path(at), data: Some(bytes(value)), version: None }
        }
        ["set-if", version, at, value] => {
            let version = Some(number(version));
            Op::SetData { path: path(at), data: Some(bytes(value)), version }
        }
        ["get", at, ref rest @ ..] => Op::Get { path: path(at), watch: id(rest) },
        ["exists", at, ref rest @ ..] => Op::Exists { path: path(at), watch: id(rest) },
        ["ls", at, ref rest @ ..] => {
            Op::Children { path: path(at), watch: id(rest), page: Page::default() }
        }
        ["sync"] => Op::Sync { path: ZPath::root() },
        ["close"] => Op::CloseSession,
        ["whoami"] => Op::WhoAmI,
        ["unwatch", watch] => Op::Unwatch { id: WatchId(number(watch)) },
        ["watch", watch, kind, at, ref rest @ ..] => {
            let since = rest.iter().find_map(|word| word.strip_prefix("since=")).map(the_zxid);
            let with_value = rest.contains(&"value");
            let (id, kind) = (WatchId(number(watch)), the_kind(kind));
            Op::Watch { id, path: path(at), kind, since, with_value }
        }
        _ => panic!("not an operation: {words:?}"),
    }
}

fn status(world: &mut World) {
    for id in world.ids() {
        let line = match world.status(id) {
            None => format!("server {id}: down"),
            Some(it) => format!(
                "server {id}: {:?} applied {} sessions {} local {}{} connections {} watches {}",
                it.role,
                it.applied,
                it.sessions,
                it.local_sessions,
                match it.unopened_sessions {
                    0 => String::new(),
                    unopened => format!(" unopened {unopened}"),
                },
                it.connections,
                it.watches
            ),
        };
        world.log.push(line);
    }
}

fn client<'a>(world: &'a mut World, name: &str) -> &'a mut crate::world::Client {
    world.client(name)
}

/// `3`, or `leader`.
fn the_server(world: &World, word: &str) -> ServerId {
    match word {
        "leader" => world.leader().expect("there is a leader"),
        id => server(number(id)),
    }
}

fn create(at: &str, mode: CreateMode, rest: &[&str]) -> Op {
    let data = rest.first().map(|value| bytes(value));
    Op::Create { path: path(at), data, acl: Acl::open(), mode }
}

fn the_kind(word: &str) -> WatchKind {
    match word {
        "data" => WatchKind::Data,
        "exists" => WatchKind::Exists,
        "children" => WatchKind::Children,
        "persistent" => WatchKind::Persistent,
        "recursive" => WatchKind::PersistentRecursive,
        _ => panic!("not a kind of watch: {word}"),
    }
}

fn the_zxid(word: &str) -> Zxid {
    let (epoch, counter) = word.split_once('.').expect("a zxid is epoch.counter");
    Zxid::new(conclave_proto::Epoch::new(number(epoch)).unwrap(), number(counter))
}

fn identify(word: &str) -> Identity {
    let (scheme, id) = word.split_once(':').expect("an identity is scheme:id");
    Identity { scheme: scheme.into(), id: id.into() }
}

fn id(words: &[&str]) -> Option<WatchId> {
    words.first().map(|word| WatchId(number(word)))
}

fn path(text: &str) -> ZPath {
    ZPath::new(text).expect("a valid path")
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}
