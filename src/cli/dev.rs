//! `conclave dev`.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::ensemble::{Ensemble, Layout};
use super::say;

/// Start an ensemble on this machine: real server processes with kept data
///
/// Server i keeps its data, its configuration, its log and its pid in DIR/i. Its ports are
/// P + 10 (i - 1) for clients, 1 more for the other servers, 2 more for administration, 3 more for
/// clients of ZooKeeper's protocol. The servers end with this command; started again with the same
/// directory, everything is still there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: conclave dev --servers 5 --dir /tmp/ensemble")]
pub(super) struct Args {
    /// How many servers: 1, 3, 5 or 7
    #[arg(long, value_name = "N", default_value_t = 3)]
    servers: u8,
    /// Where the servers keep what they have
    #[arg(long, value_name = "DIR", default_value = "conclave-data")]
    dir: PathBuf,
    /// The first port
    #[arg(long, value_name = "P", default_value_t = 7400)]
    port_base: u16,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let layout = Layout { servers: args.servers, dir: args.dir.clone(), port_base: args.port_base };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ensemble = Ensemble::claim(layout.clone())?;
    let outcome = tokio::select! {
        outcome = watch_over(&mut ensemble, &layout) => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    ensemble.stop().await;
    outcome?;
    say!("Stopped. The data stays in {}.", args.dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Starts the servers, and tells of each one that ends and of who leads then.
async fn watch_over(ensemble: &mut Ensemble, layout: &Layout) -> anyhow::Result<()> {
    ensemble.start_all().await?;
    greet(ensemble, layout.leader().await?);
    let mut is_leader_known = true;
    loop {
        tokio::select! {
            (id, how) = ensemble.next_end() => {
                report_end(layout, id, &how);
                is_leader_known = false;
            }
            leader = layout.leader(), if !is_leader_known => {
                match leader {
                    Ok(leader) => say!("Server {leader} leads."),
                    Err(error) => say!("{error:#}"),
                }
                is_leader_known = true;
            }
        }
    }
}

fn greet(ensemble: &Ensemble, leader: u8) {
    let layout = ensemble.layout();
    let servers = layout.connect_string();
    match layout.servers {
        1 => say!("One server runs.\n"),
        servers => say!("{servers} servers run; server {leader} leads.\n"),
    }
    for id in layout.ids() {
        let pid = ensemble.pid(id).unwrap_or_default();
        let dir = layout.server_dir(id);
        say!(
            "  server {id}  pid {pid:<8} {}  http://{}/status",
            dir.display(),
            layout.admin_address(id)
        );
    }
    say!("\nClients connect to {servers},");
    say!("clients of ZooKeeper to {}. In another terminal:\n", layout.zookeeper_string());
    say!("  export CONCLAVE_SERVERS={servers}");
    say!("  conclave create /hello world      # make a node");
    say!("  conclave get /hello               # read it");
    say!("  conclave watch /hello             # be told when it changes");
    say!("  conclave status                   # who leads, who follows");
    say!("  kill -9 $(cat {})   # the leader; nothing is lost", layout.pid_file(leader).display());
    say!("\nCtrl-C stops the servers; the data stays in {}.", layout.dir.display());
}

fn report_end(layout: &Layout, id: u8, how: &str) {
    say!("\nServer {id} has ended ({how}). Start it again with:");
    let (config, pid) = (layout.config_file(id), layout.pid_file(id));
    say!("  conclave serve --config {} --pid-file {} &", config.display(), pid.display());
}
