//! Trees that go out to files and come in again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use conclave_client::{Acl, Client, Identity, Perms};
use serde_json::{Value, json};

use super::held::Aside;
use super::{Dev, text};

/// A directory of the test's own.
fn dir(dev: &Dev, name: &str) -> PathBuf {
    dev.home.path().join(name)
}

/// Makes files, the directories above them included.
fn write_files(dir: &Path, files: &[(&str, &str)]) {
    for (name, contents) in files {
        let file = dir.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, contents).unwrap();
    }
}

fn import(dev: &Dev, from: &Path, to: &str) -> Output {
    dev.run(&["import", from.to_str().unwrap(), to, "--json"])
}

fn export(dev: &Dev, from: &str, to: &Path, more: &[&str]) -> Output {
    dev.run(&[&["export", from, to.to_str().unwrap(), "--json"], more].concat())
}

/// What a command said that left nothing out.
fn whole(output: &Output) -> Value {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["left_out"], json!([]));
    report
}

/// What a command left out, each in a line.
fn left_out(output: &Output) -> Vec<String> {
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = report["left_out"].as_array().unwrap();
    lines.iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

fn assert_same(one: &Path, other: &Path) {
    let same = Command::new("diff").arg("-r").args([one, other]).output().unwrap();
    assert!(same.status.success(), "{}", text(&same.stdout));
}

/// Changes what anybody may do with a node.
fn permit(dev: &Dev, path: &str, perms: &[Perms]) {
    set_acl(dev, path, vec![grant(perms, "world", "anyone")]);
}

fn grant(perms: &[Perms], scheme: &str, id: &str) -> Acl {
    let perms = Perms(perms.iter().fold(0, |all, perms| all | perms.0));
    Acl { perms, identity: Identity { scheme: scheme.into(), id: id.into() } }
}

fn set_acl(dev: &Dev, path: &str, acl: Vec<Acl>) {
    with(dev, async |client| client.set_acl(path, acl).await.unwrap());
}

fn acl(dev: &Dev, path: &str) -> Vec<Acl> {
    with(dev, async |client| client.get_acl(path).await.unwrap().0)
}

/// Does something in a session of its own.
fn with<T>(dev: &Dev, work: impl AsyncFnOnce(&Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::builder().servers(dev.servers()).connect().await.unwrap();
        let done = work(&client).await;
        client.close().await.unwrap();
        done
    })
}

/// The place of the last transaction in the history of the only server.
fn last_transaction(dev: &Dev) -> u64 {
    let zxid = dev.json(&["sync"])["zxid"].as_str().unwrap().to_owned();
    zxid.split_once('.').unwrap().1.parse().unwrap()
}

#[test]
fn a_tree_of_more_nodes_than_are_counted_is_exported() {
    let dev = Dev::start();
    let from = dir(&dev, "from");
    fs::create_dir(&from).unwrap();
    let nodes = conclave::limits::COUNT_NODES + 1;
    for number in 0..nodes {
        fs::write(from.join(format!("{number:05}")), "").unwrap();
    }
    whole(&import(&dev, &from, "/many"));
    let report = whole(&export(&dev, "/many", &dir(&dev, "to"), &[]));
    assert_eq!(report["nodes"], nodes);
    assert_same(&from, &dir(&dev, "to"));
}

#[test]
fn what_may_not_be_read_is_named_and_is_no_empty_directory() {
    let dev = Dev::start();
    dev.ask(&["create", "--parents", "/app/secret/below", "hidden"]);
    dev.ask(&["create", "/app/open", "seen"]);
    permit(&dev, "/app/secret", &[Perms::ADMIN]);
    let to = dir(&dev, "to");
    let lines = left_out(&export(&dev, "/app", &to, &[]));
    assert!(lines.len() == 1 && lines[0].starts_with("/app/secret: "), "{lines:?}");
    assert!(!to.join("secret").exists());
    assert_eq!(fs::read_to_string(to.join("open")).unwrap(), "seen");

    let listed = dev.ask(&["ls", "/app", "--long", "--json"]);
    let secret: Value = serde_json::from_str(listed.lines().nth(1).unwrap()).unwrap();
    assert_eq!(secret, json!({ "name": "secret", "stat": null, "data": null }));
    assert!(dev.ask(&["ls", "/app", "--long"]).lines().nth(1).unwrap().starts_with("v?"));
    let listed = dev.ask(&["tree", "/app", "--json"]);
    let secret: Value = serde_json::from_str(listed.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&secret["path"], &secret["stat"]), (&json!("secret"), &Value::Null));
}

#[test]
fn a_backup_of_everything_goes_into_another_ensemble() {
    let (one, other) = (Dev::start(), Dev::start());
    one.ask(&["create", "--parents", "/locks/backup", "of the lock"]);
    one.ask(&["create", "/app", "kept"]);
    let mut holder =
        Aside::start(&one, &["create", "/locks/backup/lock-", "gone", "--ephemeral", "-s"]);
    assert_eq!(holder.line(), "/locks/backup/lock-0000000000");
    let to = dir(&one, "to");
    let report = whole(&export(&one, "/", &to, &[]));
    assert_eq!((&report["nodes"], &report["ephemeral"]), (&json!(3), &json!(1)));
    assert!(!to.join("zookeeper").exists());
    whole(&import(&other, &to, "/"));
    assert_eq!(other.ask(&["get", "/app"]), "kept");
    assert_eq!(other.ask(&["get", "/locks/backup"]), "of the lock");
    assert_eq!(other.ask(&["ls", "/locks/backup"]), "");
}

/// The servers number the nodes that come later after those that were restored.
#[test]
fn a_restored_queue_goes_on_in_its_order() {
    let (one, other) = (Dev::start(), Dev::start());
    for item in ["first", "second", "third", "fourth"] {
        one.ask(&["queue", "push", "mail", item]);
    }
    assert_eq!(one.ask(&["queue", "pop", "mail"]), "first");
    let to = dir(&one, "to");
    whole(&export(&one, "/queues", &to, &[]));
    whole(&import(&other, &to, "/queues"));
    other.ask(&["queue", "push", "mail", "fifth"]);
    for item in ["second", "third", "fourth", "fifth"] {
        assert_eq!(other.ask(&["queue", "pop", "mail"]), item);
    }
}

#[test]
fn what_not_everybody_may_do_is_so_again_after_a_restore() {
    let (one, other) = (Dev::start(), Dev::start());
    one.ask(&["create", "--parents", "/app/dir/leaf", "leaf"]);
    let (anyone, alice) = (("world", "anyone"), ("digest", "alice:aGFzaA=="));
    let leaf = vec![
        grant(&[Perms::READ, Perms::ADMIN], anyone.0, anyone.1),
        grant(&[Perms::ALL], alice.0, alice.1),
    ];
    let perms = [Perms::READ, Perms::CREATE, Perms::ADMIN];
    let dir_acl = vec![grant(&perms, anyone.0, anyone.1)];
    set_acl(&one, "/app/dir/leaf", leaf.clone());
    set_acl(&one, "/app/dir", dir_acl.clone());
    let to = dir(&one, "to");
    whole(&export(&one, "/app", &to, &[]));
    assert_eq!(whole(&import(&other, &to, "/else"))["created"], 3);
    assert_eq!(acl(&other, "/else"), *Acl::open());
    assert_eq!(acl(&other, "/else/dir"), dir_acl);
    assert_eq!(acl(&other, "/else/dir/leaf"), leaf);
    assert_eq!(other.ask(&["ls", "/else"]), "dir\n");
    whole(&import(&other, &to.join("dir"), "/part"));
    assert_eq!((acl(&other, "/part"), acl(&other, "/part/leaf")), (dir_acl, leaf));

    permit(&one, "/app/dir", &[Perms::ALL]);
    one.ask(&["delete", "--recursive", "/app"]);
    one.ask(&["create", "/app"]);
    whole(&export(&one, "/app", &to, &["--replace"]));
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    let line = json!({ "path": "", "acl": [{ "perms": "rq", "scheme": "world", "id": "anyone" }] });
    write_files(&to, &[(".conclave-acl", &line.to_string())]);
    let refused = import(&other, &to, "/third");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("line 1"), "{}", text(&refused.stderr));
    assert_eq!(other.run(&["exists", "/third"]).status.code(), Some(1));
}

#[test]
fn what_belongs_to_the_servers_is_not_loaded_and_what_comes_after_it_is() {
    let dev = Dev::start();
    let from = dir(&dev, "from");
    write_files(&from, &[("zookeeper/config", "of others"), ("zookeeper/mine", ""), ("zz", "z")]);
    let lines = left_out(&import(&dev, &from, "/"));
    assert!(lines.len() == 1 && lines[0].contains("/zookeeper: "), "{lines:?}");
    assert_eq!(dev.ask(&["get", "/zz"]), "z");
    assert_eq!(dev.run(&["exists", "/zookeeper/mine"]).status.code(), Some(1));
    whole(&import(&dev, &from, "/below"));
    assert_eq!(dev.ask(&["get", "/below/zookeeper/config"]), "of others");
}

#[test]
fn an_export_over_an_older_one_leaves_nothing_of_it() {
    let dev = Dev::start();
    let (from, to) = (dir(&dev, "from"), dir(&dev, "to"));
    let old = [
        (".conclave-node", "old"),
        ("emptied/.conclave-node", "old"),
        ("emptied/child", "same"),
        ("grows", "leaf"),
        ("shrinks/child", "gone"),
        ("shrinks/.conclave-node", "stays"),
        ("vanishes/deep/down", "gone"),
    ];
    write_files(&from, &old);
    whole(&import(&dev, &from, "/a"));
    whole(&export(&dev, "/a", &to, &[]));
    assert_same(&from, &to);

    dev.ask(&["set", "/a", ""]);
    dev.ask(&["set", "/a/emptied", ""]);
    dev.ask(&["create", "/a/grows/child", "new"]);
    dev.ask(&["delete", "/a/shrinks/child"]);
    dev.ask(&["delete", "--recursive", "/a/vanishes"]);
    let refused = export(&dev, "/a", &to, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--replace"), "{}", text(&refused.stderr));
    assert_same(&from, &to);

    let report = whole(&export(&dev, "/a", &to, &["--replace"]));
    // A new child, and the data of the node that has lost its own.
    assert_eq!(report["written"], 2);
    whole(&export(&dev, "/a", &dir(&dev, "fresh"), &[]));
    assert_same(&to, &dir(&dev, "fresh"));
    assert_eq!(fs::read_to_string(to.join("shrinks")).unwrap(), "stays");
    assert!(!to.join("emptied/.conclave-node").exists() && !to.join("vanishes").exists());
    assert_eq!(whole(&export(&dev, "/a", &to, &["--replace"]))["written"], 0);
}

#[test]
fn an_export_that_was_killed_goes_on_and_is_no_backup_before() {
    let dev = Dev::start();
    let (from, to) = (dir(&dev, "from"), dir(&dev, "to"));
    let large = "large ".repeat(100_000);
    write_files(
        &from,
        &[("dead", "soon"), ("large", &large), ("part/of/it", ""), ("tiny", "tiny")],
    );
    whole(&import(&dev, &from, "/a"));
    // The kernel kills who writes a file of more than a few KiB: in the middle of the second one.
    let script = format!("ulimit -c 0; ulimit -f 64; exec \"$0\" export /a {}", to.display());
    let killed = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_conclave")])
        .env("CONCLAVE_SERVERS", dev.servers())
        .output()
        .unwrap();
    assert_eq!(killed.status.code(), None, "{}", text(&killed.stderr));
    assert!(to.join("dead").exists());
    // As if it had come a little further.
    write_files(&to, &[("part/of/it", "")]);
    let refused = import(&dev, &to, "/b");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("export"), "{}", text(&refused.stderr));
    assert_eq!(dev.run(&["exists", "/b"]).status.code(), Some(1));
    let part = import(&dev, &to.join("part"), "/b");
    assert_eq!(part.status.code(), Some(1), "{}", text(&part.stdout));
    let said = text(&part.stderr);
    assert!(said.contains(to.to_str().unwrap()) && said.contains("has not ended"), "{said}");
    assert_eq!(dev.run(&["exists", "/b"]).status.code(), Some(1));
    let above = dir(&dev, "above");
    write_files(&above, &[("to/.conclave-export/file", "half")]);
    assert!(left_out(&import(&dev, &above, "/c"))[0].contains("has not ended"));
    assert_eq!(dev.ask(&["tree", "/c"]), "/c\n  to\n1 nodes\n");

    dev.ask(&["delete", "/a/dead"]);
    whole(&export(&dev, "/a", &to, &[]));
    fs::remove_file(from.join("dead")).unwrap();
    assert_same(&from, &to);
    whole(&import(&dev, &to, "/b"));
}

/// Names of nodes are for those who may list them, which a directory cannot know.
#[test]
fn what_is_exported_is_for_its_owner_alone() {
    let dev = Dev::start();
    dev.ask(&["create", "--parents", "/a/dir/leaf", "leaf"]);
    let to = dir(&dev, "new/to");
    whole(&export(&dev, "/a", &to, &[]));
    for (name, mode) in [("", 0o700), ("dir", 0o700), ("dir/leaf", 0o600)] {
        let found = fs::metadata(to.join(name)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{name:?}");
    }
}

#[test]
fn names_that_no_file_can_have_are_named_and_the_rest_is_exported() {
    let dev = Dev::start();
    let long = "n".repeat(300);
    dev.ask(&["create", "--parents", &format!("/a/{long}/below"), "lost"]);
    dev.ask(&["create", "--parents", "/a/.conclave-node/below", "lost"]);
    dev.ask(&["create", "/a/z", "kept"]);
    let to = dir(&dev, "to");
    let lines = left_out(&export(&dev, "/a", &to, &[]));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("/a/.conclave-node: "), "{lines:?}");
    assert!(lines[1].starts_with(&format!("/a/{long}: ")), "{lines:?}");
    assert_eq!(fs::read_to_string(to.join("z")).unwrap(), "kept");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
}

#[test]
fn who_may_create_in_one_part_of_the_tree_can_load_it() {
    let dev = Dev::start();
    let from = dir(&dev, "from");
    write_files(&from, &[("file", "contents")]);
    dev.ask(&["create", "/app"]);
    permit(&dev, "/", &[Perms::READ, Perms::ADMIN]);
    dev.ask(&["create", "--parents", "/app/a/b"]);
    dev.ask(&["create", "--parents", "/app/c/d-", "--sequential"]);
    assert_eq!(whole(&import(&dev, &from, "/app/x/y"))["created"], 2);
    assert!(dev.complain(&["create", "--parents", "/other/a"]).contains("no permission"));
    let refused = import(&dev, &from, "/other/a");
    assert_eq!(refused.status.code(), Some(1));
    assert!(!text(&refused.stderr).contains("again"), "{}", text(&refused.stderr));
}

#[test]
fn what_the_servers_refuse_is_named_and_the_rest_is_loaded() {
    let dev = Dev::start();
    let from = dir(&dev, "from");
    write_files(&from, &[("closed/new", ""), ("fixed", "other"), ("hidden", "1"), ("open", "2")]);
    dev.ask(&["create", "--parents", "/in/closed"]);
    dev.ask(&["create", "/in/fixed", "first"]);
    dev.ask(&["create", "/in/hidden", "0"]);
    permit(&dev, "/in/closed", &[Perms::READ]);
    permit(&dev, "/in/fixed", &[Perms::READ]);
    permit(&dev, "/in/hidden", &[Perms::ADMIN]);
    let lines = left_out(&import(&dev, &from, "/in"));
    let refused = ["create /in/closed/new: ", "set /in/fixed: ", "set /in/hidden: "];
    assert_eq!(lines.len(), refused.len(), "{lines:?}");
    for (line, refused) in lines.iter().zip(refused) {
        assert!(line.starts_with(refused) && line.ends_with("permission for this"), "{lines:?}");
    }
    assert_eq!(dev.ask(&["get", "/in/open"]), "2");
}

#[test]
fn what_is_there_already_costs_no_transaction() {
    let dev = Dev::start();
    let from = dir(&dev, "from");
    let names: Vec<String> = (0..100).map(|number| format!("d{number}/leaf")).collect();
    let files: Vec<_> = names.iter().map(|name| (&**name, "same")).collect();
    write_files(&from, &files);
    write_files(&from, &[("d0/.conclave-node", "its own")]);
    assert_eq!(whole(&import(&dev, &from, "/a/b"))["created"], 201);
    let before = last_transaction(&dev);
    let report = whole(&import(&dev, &from, "/a/b"));
    assert_eq!((&report["unchanged"], &report["changed"]), (&json!(201), &json!(0)));
    // Sessions begin and end.
    assert!(last_transaction(&dev) - before < 10);
    assert_eq!(dev.ask(&["get", "/a/b/d0"]), "its own");
}
