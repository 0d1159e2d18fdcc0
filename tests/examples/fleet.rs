//! A fleet that follows a configuration, rolled out in stages.

use std::fs;

use tempfile::TempDir;

use crate::Program;
use crate::harness::{Cluster, eventually};

const EXAMPLE: &str = "fleet";
const AGENTS: [&str; 4] = ["a", "b", "c", "d"];

struct Fleet {
    servers: String,
    home: TempDir,
    agents: Vec<Program>,
}

impl Fleet {
    fn start(servers: String) -> Fleet {
        let mut fleet = Fleet { servers, home: TempDir::new().unwrap(), agents: Vec::new() };
        for (name, group) in AGENTS.into_iter().zip([Some("canary"), Some("eu"), None, None]) {
            let file = fleet.home.path().join(name);
            let mut args = vec!["agent", name, file.to_str().unwrap()];
            args.extend(group.into_iter().flat_map(|group| ["--group", group]));
            fleet.agents.push(Program::start(EXAMPLE, &fleet.servers, &args));
        }
        fleet
    }

    fn ask(&self, args: &[&str]) -> String {
        Program::ask(EXAMPLE, &self.servers, args)
    }

    /// What an agent has run, in order.
    fn ran(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.home.path().join(name)).unwrap_or_default();
        text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    /// Waits until all run a version, and are well.
    async fn all_run(&self, version: &str) {
        eventually("all run it", async || {
            let status = self.ask(&["status"]);
            let runs = format!(" runs {version}: well");
            (status.lines().filter(|line| line.ends_with(&runs)).count() == AGENTS.len())
                .then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_release_goes_from_stage_to_stage_and_is_taken_back_when_it_does_harm() {
    let mut cluster = Cluster::start(3).await;
    let fleet = Fleet::start(cluster.addresses());
    let there = async || (fleet.ask(&["status"]).lines().count() == 4).then_some(());
    eventually("all agents are there", there).await;
    fleet.ask(&["rollout", "1.0", "4"]);
    fleet.all_run("1.0").await;

    let leader = cluster.leader().await;
    let rolling = Program::start(EXAMPLE, &fleet.servers, &["rollout", "1.1", "6", "canary", "eu"]);
    cluster.kill(leader);
    assert!(rolling.succeeded());
    cluster.launch(leader);
    fleet.all_run("1.1").await;
    for name in AGENTS {
        assert_eq!(fleet.ran(name), ["1.0", "1.1"], "{name}");
    }

    // More workers than an agent can have: the canary alone sees it.
    let bad = ["rollout", "1.2", "600", "canary", "eu"];
    let complaint = Program::complain(EXAMPLE, &fleet.servers, &bad);
    assert!(complaint.contains("1.2 is taken back: a is not well with it"), "{complaint}");
    fleet.all_run("1.1").await;
    assert!(fleet.ran("a").contains(&"1.2".into()));
    for name in ["b", "c", "d"] {
        assert!(!fleet.ran(name).contains(&"1.2".into()), "{name} has seen it");
    }

    // What nobody can run does not even get there.
    let nothing = Program::complain(EXAMPLE, &fleet.servers, &["rollout", "1.3", "0", "canary"]);
    assert!(nothing.contains("a release needs a worker"), "{nothing}");

    fleet.ask(&["rollback"]);
    fleet.all_run("1.0").await;
}

#[tokio::test]
async fn whoever_rolls_out_may_die_in_the_middle() {
    let cluster = Cluster::start(1).await;
    let mut fleet = Fleet::start(cluster.addresses());
    let there = async || (fleet.ask(&["status"]).lines().count() == 4).then_some(());
    eventually("all agents are there", there).await;
    fleet.ask(&["rollout", "1.0", "4"]);
    // An agent that does not answer holds the roll-out up.
    let canary = fleet.agents.remove(0);
    canary.signal("STOP");
    let rolling = Program::start(EXAMPLE, &fleet.servers, &["rollout", "1.1", "6", "canary"]);
    let staged = async || fleet.ask(&["status"]).contains("staged for canary").then_some(());
    eventually("it is staged", staged).await;
    rolling.kill();
    canary.signal("CONT");
    eventually("the canary sees it", async || {
        (fleet.ran("a").last().map(String::as_str) == Some("1.1")).then_some(())
    })
    .await;
    fleet.ask(&["rollout", "1.2", "8", "canary", "eu"]);
    fleet.all_run("1.2").await;
}
