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
    for (signal, code) in [("HUP", 128 + 1), ("USR1", 128 + 10), ("INT", 0)] {
        let mut third = Aside::start(&dev, &["join", "workers", "--name", "c"]);
        assert_eq!(watch.line(), "joined   c");
        third.signal(signal);
        assert_eq!(third.code(), Some(code), "{signal}");
        assert_eq!(watch.line(), "left     c");
    }
}

#[test]
fn who_is_stopped_while_he_waits_for_a_name_leaves_no_session() {
    let dev = Dev::start();
    let mut first = Aside::start(&dev, &["join", "workers", "--name", "a"]);
    let watches = || dev.json(&["status"])["watches"].as_u64().unwrap();
    wait_until("a joins", || dev.run(&["members", "workers"]).stdout == b"a\n");
    let (alone, sessions) = (watches(), dev.json(&["status"])["sessions"].clone());
    for (args, signal, code) in [
        (&["join", "workers", "--name", "a"][..], "TERM", 0),
        (&["join", "workers", "--name", "a"], "HUP", 128 + 1),
        (&["join", "workers", "--name", "a", "--", "true"], "TERM", 128 + 15),
    ] {
        wait_until("nobody else is there", || watches() == alone);
        let mut second = Aside::start(&dev, args);
        // It looks whether its own node stays, and at the one that is in its way.
        wait_until("it waits for the name", || watches() == alone + 2);
        second.signal(signal);
        assert_eq!(second.code(), Some(code), "{args:?} {signal}");
        assert_eq!(dev.json(&["status"])["sessions"], sessions);
    }
    first.signal("INT");
    assert_eq!(first.code(), Some(0));
}

#[test]
fn an_instance_is_found_as_long_as_it_is_registered() {
    let dev = Dev::start();
    let none = dev.complain(&["discover", "billing"]);
    assert_eq!(none, "conclave: no instance of billing is registered\n");
    assert_eq!(dev.run(&["discover", "a/b"]).status.code(), Some(125), "not that there is none");
    let args = ["register", "billing", "b", "10.0.0.7:80", "--meta", "zone", "--", "true"];
    assert_eq!(dev.run(&args).status.code(), Some(125));
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
    assert_eq!(dev.run(&["queue", "pop", "a/b"]).status.code(), Some(125));
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
fn an_item_that_is_lost_in_the_middle_is_told_of() {
    let dev = Dev::start();
    for ends in ["true", "exit 5"] {
        dev.ask(&["queue", "push", "mail", "hello"]);
        let conclave = env!("CARGO_BIN_EXE_conclave");
        let delete = format!(
            "lock=$({conclave} ls /queues/mail/taken) && {conclave} delete /queues/mail/taken/$lock"
        );
        let lost =
            dev.run(&["queue", "pop", "mail", "--", "sh", "-c", &format!("{delete}; {ends}")]);
        assert_eq!(lost.status.code(), Some(123), "{}", text(&lost.stderr));
        assert!(text(&lost.stderr).contains("was not held any more"), "{}", text(&lost.stderr));
        assert_eq!(dev.ask(&["queue", "pop", "mail"]), "hello", "it is handed out again");
    }
}

#[test]
fn who_comes_to_a_barrier_waits_until_it_is_lowered() {
    let dev = Dev::start();
    let wait =
        |within: &str| dev.run(&["barrier", "wait", "migration", "--within", within]).status.code();
    assert_eq!(wait("0"), Some(0), "nobody has raised it");
    assert_eq!(dev.ask(&["barrier", "lower", "migration"]), "it was not raised\n");
    assert_eq!(dev.ask(&["barrier", "raise", "migration"]), "raised\n");
    assert_eq!(dev.ask(&["barrier", "raise", "migration"]), "it was raised already\n");
    assert_eq!(wait("0"), Some(124));
    let mut waiting = Aside::start(&dev, &["barrier", "wait", "/barriers/migration"]);
    let mut told = Aside::start(&dev, &["barrier", "wait", "migration"]);
    told.signal("TERM");
    assert!(matches!(told.code(), None | Some(143)), "before or after it catches signals");
    assert_eq!(dev.json(&["barrier", "lower", "migration"])["lowered"], true);
    assert_eq!(waiting.code(), Some(0));
    for name in ["", "a/b"] {
        assert_eq!(dev.run(&["barrier", "raise", name]).status.code(), Some(125), "{name:?}");
    }
}

#[test]
fn who_meets_at_a_barrier_begins_and_ends_together() {
    let dev = Dev::start();
    let meet = ["barrier", "meet", "step", "--count", "2"];
    let alone = [&meet[..], &["--within", "1", "--", "true"]].concat();
    assert_eq!(dev.run(&alone).status.code(), Some(124));
    let inside =
        || dev.run(&["ls", "/barriers/step"]).stdout.iter().filter(|b| **b == b'\n').count();
    wait_until("it has gone", || inside() == 0);

    let script = "trap 'exit 4' TERM; echo in; while :; do sleep 0.1; done";
    let both = [&meet[..], &["--", "sh", "-c", script]].concat();
    let mut first = Aside::start(&dev, &both);
    wait_until("the first one comes", || inside() == 1);
    let mut second = Aside::start(&dev, &both);
    assert_eq!((first.line(), second.line()), ("in".into(), "in".into()));
    first.signal("TERM");
    second.signal("TERM");
    assert_eq!((first.code(), second.code()), (Some(4), Some(4)));

    let mut first = Aside::start(&dev, &meet);
    let mut second = Aside::start(&dev, &meet);
    assert_eq!((first.code(), second.code()), (Some(0), Some(0)));
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

    // One that was edited by hand hides none of the others, and a value that was deleted can be had back.
    let edited = format!("/config/history/default/pool/{:020}", 2);
    dev.ask(&["set", &edited, "oops"]);
    dev.ask(&["delete", "/config/live/default/values/pool"]);
    assert_eq!(watch.line(), "(no value)");
    let history = dev.run(&["config", "history", "pool"]);
    assert_eq!((history.status.code(), text(&history.stdout).lines().count()), (Some(1), 2));
    assert!(text(&history.stderr).contains(&edited), "{}", text(&history.stderr));
    assert_eq!(dev.ask(&["config", "rollback", "pool", "1"]), "pool is at revision 4\n");
    assert_eq!(watch.line(), r#"{"size":10}"#);
}

#[test]
fn a_field_is_overridden_for_one_instance_alone() {
    let dev = Dev::start();
    dev.ask(&["config", "set", "pool", r#"{"size": 10, "host": "a"}"#]);
    let one = ["pool", "--instance", "billing-7"];
    let asked = |command: &str| dev.ask(&[&["config", command], &one[..]].concat());
    let mut watch = Aside::start(&dev, &[&["config", "watch"], &one[..]].concat());
    assert_eq!(watch.line(), r#"{"host":"a","size":10}"#);
    dev.ask(&[&["config", "set"], &one[..], &[r#"{"size": 30}"#, "--overlay"]].concat());
    assert_eq!(watch.line(), r#"{"host":"a","size":30}"#);
    dev.ask(&["config", "set", "pool", r#"{"size": 11, "host": "b"}"#]);
    assert_eq!(watch.line(), r#"{"host":"b","size":30}"#);
    let seen = dev.json(&[&["config", "get"], &one[..]].concat());
    let layers = (&seen["layer"], &seen["beneath"][0]["layer"]);
    assert_eq!(layers, (&"instance billing-7".into(), &"default".into()));

    // It is edited, staged and shown as what it is.
    let mut edit = dev.command(&[&["config", "edit"], &one[..]].concat());
    edit.env_remove("VISUAL").env("EDITOR", "sed -i s/30/40/");
    assert!(edit.output().unwrap().status.success());
    assert_eq!(watch.line(), r#"{"host":"b","size":40}"#);
    let history = asked("history");
    assert!(history.lines().all(|line| line.contains("  merged")), "{history}");
    let stage = [r#"{"host": null}"#, "--overlay", "--group", "canary"];
    dev.ask(&[&["config", "stage"], &one[..], &stage].concat());
    assert_eq!(dev.json(&[&["config", "staged"], &one[..]].concat())["overlay"], true);
    asked("promote");
    assert_eq!(watch.line(), r#"{"size":11}"#);
    for wrong in [&[r#"{"size": 1}"#][..], &["7", "--instance", "billing-7"]] {
        let refused = dev.complain(&[&["config", "set", "pool", "--overlay"], wrong].concat());
        assert!(refused.contains("overlay"), "{refused}");
    }
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

#[test]
fn a_staged_value_is_seen_by_its_groups_until_it_is_everybodys() {
    let dev = Dev::start();
    let none = "conclave: nothing is staged for limit\n";
    assert_eq!(dev.complain(&["config", "promote", "limit"]), none);
    assert_eq!(dev.complain(&["config", "widen", "limit", "--group", "eu"]), none);
    dev.ask(&["config", "set", "limit", "100"]);
    let seen_by = |group: &str| dev.ask(&["config", "get", "limit", "--group", group]);
    let mut watch = Aside::start(&dev, &["config", "watch", "limit", "--group", "eu"]);
    assert_eq!(watch.line(), "100");
    let staged = dev.ask(&["config", "stage", "limit", "200", "--group", "canary"]);
    assert_eq!(staged, "limit is staged for canary\n");
    assert_eq!((seen_by("canary"), seen_by("eu")), ("200\n".into(), "100\n".into()));
    assert_eq!(dev.ask(&["config", "get", "limit"]), "100\n");
    let widened = dev.ask(&["config", "widen", "limit", "--group", "eu"]);
    assert_eq!(widened, "limit is staged for canary, eu\n");
    assert_eq!(watch.line(), "200");
    assert_eq!(dev.json(&["config", "staged", "limit"])["on"], 1);
    assert_eq!(dev.ask(&["config", "promote", "limit"]), "limit is at revision 2\n");
    assert_eq!(dev.ask(&["config", "get", "limit"]), "200\n");
    assert_eq!(dev.complain(&["config", "staged", "limit"]), none);

    dev.ask(&["config", "stage", "limit", "300", "--group", "canary"]);
    dev.ask(&["config", "set", "limit", "250"]);
    let conflict = dev.complain(&["config", "promote", "limit"]);
    assert!(conflict.contains("changed by somebody else"), "{conflict}");
    assert!(conflict.contains("stage the value again"), "{conflict}");
    assert_eq!(dev.ask(&["config", "abandon", "limit"]), "abandoned\n");
    assert_eq!(seen_by("canary"), "250\n");
}

#[test]
fn what_a_schema_calls_a_secret_is_printed_only_when_asked_for() {
    let dev = Dev::start();
    assert_eq!(dev.complain(&["config", "schema", "pool"]), "conclave: pool has no schema\n");
    let schema = r#"{"properties": {"password": {"type": "string", "secret": true}}}"#;
    dev.ask(&["config", "schema", "pool", schema]);
    assert!(dev.ask(&["config", "schema", "pool"]).contains("secret"));
    let refused = dev.complain(&["config", "set", "pool", r#"{"password": 12345}"#]);
    assert!(refused.contains("/password is no string"), "{refused}");
    assert!(!refused.contains("12345"), "{refused}");
    dev.ask(&["config", "set", "pool", r#"{"password": "hunter2"}"#]);
    dev.ask(&["config", "set", "pool", r#"{"password": "hunter3"}"#]);
    dev.ask(&["config", "stage", "pool", r#"{"password": "hunter4"}"#, "--group", "canary"]);
    let mut watch = Aside::start(&dev, &["config", "watch", "pool"]);
    assert_eq!(watch.line(), r#"{"password":"***"}"#);
    for args in [&["get", "pool"][..], &["get", "pool", "-g", "canary"], &["staged", "pool"]] {
        let shown = dev.ask(&[&["config"], args].concat());
        assert!(shown.contains("***") && !shown.contains("hunter"), "{shown}");
        let asked = dev.ask(&[&["config"], args, &["--show-secrets"]].concat());
        assert!(asked.contains("hunter"), "{asked}");
    }
    for args in [&["history", "pool"][..], &["diff", "pool", "1", "2"]] {
        let shown = dev.ask(&[&["config"], args].concat());
        assert!(shown.contains("***") && !shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn nothing_is_printed_while_nobody_knows_what_is_secret() {
    let dev = Dev::start();
    let schema = r#"{"properties": {"password": {"type": "string", "secret": true}}}"#;
    dev.ask(&["config", "schema", "pool", schema]);
    dev.ask(&["config", "set", "pool", r#"{"password": "hunter2"}"#]);
    let below = dev.ask(&["tree", "/config", "--json"]);
    let paths: Vec<serde_json::Value> =
        below.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |part: &str| {
        let mut paths = paths.iter().map(|entry| entry["path"].as_str().unwrap());
        let found = paths.find(|path| path.contains(part) && path.ends_with("/pool"));
        format!("/config/{}", found.unwrap())
    };
    let (schema_node, live_node) = (find("schema"), find("live"));
    let stored = dev.home.path().join("stored");
    fs::write(&stored, dev.run(&["get", &live_node]).stdout).unwrap();
    dev.ask(&["config", "set", "pool", r#"{"size": 2}"#]);
    let mut watch = Aside::start(&dev, &["config", "watch", "pool"]);
    assert_eq!(watch.line(), r#"{"size":2}"#);
    dev.ask(&["set", &schema_node, "no schema"]);
    dev.ask(&["set", &live_node, "--file", stored.to_str().unwrap()]);
    assert_eq!(dev.run(&["config", "get", "pool"]).status.code(), Some(125));
    assert!(watch.is_at_work());
    dev.ask(&["config", "schema", "pool", schema]);
    assert_eq!(watch.line(), r#"{"password":"***"}"#);
}

#[test]
fn a_value_may_be_as_large_as_a_node_holds() {
    let dev = Dev::start();
    let file = dev.home.path().join("value");
    let path = file.to_str().unwrap();
    fs::write(&file, "x".repeat(1_000_000)).unwrap();
    dev.ask(&["config", "set", "page", "--file", path]);
    assert_eq!(dev.ask(&["config", "get", "page"]).trim_end().len(), 1_000_000);
    fs::write(&file, "x".repeat(1_100_000)).unwrap();
    let refused = dev.complain(&["config", "set", "page", "--file", path]);
    assert!(refused.contains("a setting has at most"), "{refused}");
}
