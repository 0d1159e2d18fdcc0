//! The recipes on the command line that hold nothing: members, services, queues, configuration.

use std::fs;

use super::held::{Aside, wait_until};
use super::{Dev, text};

#[test]
fn members_come_and_go() {
    let dev = Dev::start();
    let mut first = Aside::start(&dev, &["join", "workers", "--name", "a", "--data", "10.0.0.7"]);
    let members = || text(&dev.run(&["members", "workers"]).stdout);
    wait_until("a joins", || members() == "a  10.0.0.7\n");
    let mut watch = Aside::start(&dev, &["members", "workers", "--watch"]);
    assert_eq!(watch.line(), "here     a  10.0.0.7");
    let script = ["--", "sh", "-c", "exit 4"];
    let mut second =
        Aside::start(&dev, &[&["join", "workers", "--name", "b"][..], &script].concat());
    assert_eq!(second.code(), Some(4));
    assert_eq!(watch.line(), "joined   b");
    assert_eq!(watch.line(), "left     b");
    assert_eq!(members(), "a  10.0.0.7\n");
    assert_eq!(dev.json(&["members", "workers"])["name"], "a");
    first.signal("TERM");
    assert_eq!(first.code(), Some(0));
    assert_eq!(watch.line(), "left     a");
    assert_eq!(dev.run(&["join", "a/b"]).status.code(), Some(125));
}

#[test]
fn an_instance_is_found_as_long_as_it_is_registered() {
    let dev = Dev::start();
    let none = dev.complain(&["discover", "billing"]);
    assert_eq!(none, "conclave: no instance of billing is registered\n");
    let args = ["register", "billing", "billing-7", "10.0.0.7:80", "--meta", "zone=a"];
    let mut instance = Aside::start(&dev, &args);
    assert_eq!(dev.ask(&["discover", "billing", "--wait", "30"]), "10.0.0.7:80\n");
    assert_eq!(dev.ask(&["discover", "billing", "--all"]), "billing-7  10.0.0.7:80\n");
    assert_eq!(dev.json(&["discover", "billing"])["meta"]["zone"], "a");
    instance.signal("INT");
    assert_eq!(instance.code(), Some(0));
    assert_eq!(dev.run(&["discover", "billing", "--all"]).status.code(), Some(1));
}

#[test]
fn an_item_leaves_its_queue_when_it_is_done() {
    let dev = Dev::start();
    assert_eq!(dev.run(&["queue", "pop", "mail"]).status.code(), Some(124));
    assert_eq!(dev.ask(&["queue", "push", "mail", "later", "--priority", "2"]), "pushed\n");
    dev.ask(&["queue", "push", "mail", "soon", "--priority", "1", "--id", "x"]);
    let again = ["queue", "push", "mail", "soon", "--priority", "1", "--id", "x"];
    assert_eq!(dev.ask(&again), "it is there already\n");
    assert_eq!(dev.ask(&["queue", "len", "mail"]), "2\n");
    let fails = dev.run(&["queue", "pop", "mail", "--", "sh", "-c", "cat; exit 5"]);
    assert_eq!((fails.status.code(), text(&fails.stdout)), (Some(5), "soon".into()));
    let done =
        dev.run(&["queue", "pop", "mail", "--", "sh", "-c", "cat; test $CONCLAVE_TOKEN -gt 0"]);
    assert_eq!((done.status.code(), text(&done.stdout)), (Some(0), "soon".into()));
    assert_eq!(dev.json(&["queue", "pop", "mail"])["data"], "later");
    let mut waiting = Aside::start(&dev, &["queue", "pop", "mail", "--wait", "60"]);
    dev.ask(&["queue", "push", "mail", "at last\n"]);
    assert_eq!(waiting.line(), "at last");
    assert_eq!(waiting.code(), Some(0));
    assert_eq!(dev.ask(&["queue", "len", "mail"]), "0\n");
}

#[test]
fn a_setting_has_layers_a_history_and_a_way_back() {
    let dev = Dev::start();
    let missing = dev.complain(&["config", "get", "pool"]);
    assert_eq!(missing, "conclave: pool has no value\n");
    assert_eq!(dev.ask(&["config", "set", "pool", r#"{"size": 10}"#]), "pool is at revision 1\n");
    let mut watch = Aside::start(&dev, &["config", "watch", "pool", "--service", "billing"]);
    assert_eq!(watch.line(), r#"{"size":10}"#);
    dev.ask(&["config", "set", "pool", r#"{"size": 20}"#, "--service", "billing"]);
    assert_eq!(watch.line(), r#"{"size":20}"#);
    let seen = ["config", "get", "pool", "--environment", "prod", "--service", "billing"];
    assert_eq!(dev.json(&seen)["layer"], "service billing");
    assert_eq!(dev.json(&["config", "get", "pool"])["value"]["size"], 10);

    dev.ask(&["config", "set", "pool", r#"{"size": 11}"#, "--revision", "1", "--note", "more"]);
    let stale = dev.complain(&["config", "set", "pool", "{}", "--revision", "1"]);
    assert!(stale.contains("changed by somebody else"), "{stale}");
    assert_eq!(dev.ask(&["config", "diff", "pool", "1", "2"]), "/size: 10 → 11\n");
    assert_eq!(dev.ask(&["config", "rollback", "pool", "1"]), "pool is at revision 3\n");
    let history = dev.ask(&["config", "history", "pool"]);
    let lines: Vec<_> = history.lines().collect();
    assert_eq!(lines.len(), 3, "{history}");
    assert!(lines[1].ends_with(r#"{"size":11}  # more"#), "{history}");
    assert!(lines[0].ends_with("as it was at 1"), "{history}");
    dev.ask(&["config", "remove", "pool", "--service", "billing"]);
    assert_eq!(watch.line(), r#"{"size":10}"#);
}

#[test]
fn a_value_is_edited_or_left_as_it_is() {
    let dev = Dev::start();
    dev.ask(&["config", "set", "greeting", "hello"]);
    let editor = dev.home.path().join("editor");
    let edit = |script: &str| {
        fs::write(&editor, script).unwrap();
        let editor = format!("sh {}", editor.display());
        dev.command(&["config", "edit", "greeting"])
            .env_remove("VISUAL")
            .env("EDITOR", editor)
            .output()
            .unwrap()
    };
    assert_eq!(text(&edit("sed -i s/hello/hi/ \"$1\"").stdout), "greeting is at revision 2\n");
    assert_eq!(dev.ask(&["config", "get", "greeting"]), "hi\n");
    assert_eq!(text(&edit("true").stdout), "nothing is changed\n");
    let broken = edit("echo '{' > \"$1\"");
    assert_eq!(broken.status.code(), Some(1));
    assert!(text(&broken.stderr).contains("not JSON"), "{}", text(&broken.stderr));
    assert_eq!(edit("exit 1").status.code(), Some(1));
    assert_eq!(dev.ask(&["config", "get", "greeting"]), "hi\n");
}
