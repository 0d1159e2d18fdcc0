//! `conclave serve`.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use conclave::config::{Config, ConfigError, MemberConfig};
use conclave::net::ClientAuth;
use conclave::server;
use rustix::process::{Signal, getpid, kill_process};
use serde::Deserialize;
use serde::de::value::{self, StrDeserializer};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::tell;

/// Run one server of an ensemble until it gets SIGTERM or SIGINT
///
/// Everything can be in a TOML file (--config); a flag wins over the file. Keys without a flag of
/// their own can be given with --set.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  One server, alone, with its data in ./data:
    conclave serve --data-dir data

  The first of three servers on one machine:
    conclave serve --id 1 --data-dir d1 \\
      --client 127.0.0.1:7400 --peer 127.0.0.1:7401 --admin 127.0.0.1:7402 \\
      --member 1=127.0.0.1:7401 --member 2=127.0.0.1:7411 --member 3=127.0.0.1:7421

  From a file, waiting longer for a silent leader:
    conclave serve --config /etc/conclave.toml --set timing.silence_ms=3000

Exit codes: 0 stopped as asked; 69 an address cannot be listened on; 70 the state differs from the
leader's; 73 the data directory, or the file of --pid-file, cannot be used; 74 the disk failed; 78 wrong configuration, or
command line.
docs/OPERATING.md explains every key, metric and message.")]
pub(super) struct Args {
    /// Read this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which member this server is, 1 to 254 [default: 1]
    #[arg(long)]
    id: Option<u8>,
    /// The name of the ensemble [default: conclave]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Where the data is kept; created if it does not exist
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the log is kept, if not in the data directory: on a device of its own, say
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT")]
    client: Option<SocketAddr>,
    /// Where clients of ZooKeeper's protocol connect [default: 127.0.0.1:2181]
    #[arg(long, value_name = "IP:PORT")]
    zookeeper: Option<SocketAddr>,
    /// Do not serve ZooKeeper's protocol
    #[arg(long, conflicts_with = "zookeeper")]
    no_zookeeper: bool,
    /// Where clients of ZooKeeper's protocol connect within TLS [default: nowhere]
    #[arg(long, value_name = "IP:PORT")]
    zookeeper_secure: Option<SocketAddr>,
    /// Where the other servers connect [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT")]
    peer: Option<SocketAddr>,
    /// Where administration is served [default: 127.0.0.1:7402]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
    /// Serve no administration
    #[arg(long, conflicts_with = "admin")]
    no_admin: bool,
    /// A member of the ensemble and where the others reach it; once for each, this server
    /// included, the same list at all. None: this server is alone
    #[arg(long = "member", value_name = "ID=HOST:PORT[,observer]", value_parser = member)]
    members: Vec<MemberConfig>,
    /// Talk within TLS, with this certificate (PEM, with those between it and its CA after it)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The authorities that sign the certificates of clients and servers (PEM)
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Whether clients show certificates [default: required]
    #[arg(long, value_name = "WHETHER", value_parser = client_auth())]
    tls_client_auth: Option<ClientAuth>,
    /// Accept that clients and servers talk in plaintext over a network
    #[arg(long)]
    insecure: bool,
    /// This member has run before and its data is lost: if the data directory is empty, take part
    /// in no vote until the others have brought back what it had
    #[arg(long)]
    lost_data: bool,
    /// Write the process id into this file, once the ports and the data are this server's
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Stop, in good order, when the standard input ends: when the process that started this one
    /// and holds the other end of a pipe is gone
    #[arg(long)]
    stop_with_stdin: bool,
    /// Set any other key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// What to log: error, warn, info, debug, trace, or a filter such as conclave::peers=debug
    #[arg(long, value_name = "LEVEL", env = "CONCLAVE_LOG", default_value = "info")]
    log: String,
    /// How to log
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One line for a person
    Human,
    /// One JSON object a line
    Json,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Err(error) = start_logging(&args) {
        tell(&format!("conclave: {error:#}"));
        return Ok(misused());
    }
    // A server with a broken part must not go on without it: whatever panics ends the process.
    std::panic::set_hook(Box::new(|bug| {
        tracing::error!("the server stops because of a bug: {bug}");
        std::process::abort();
    }));
    if args.stop_with_stdin
        && let Err(error) = thread::Builder::new().name("stdin".into()).spawn(stop_with_stdin)
    {
        tracing::error!("cannot start the thread that reads the standard input: {error}");
        return Ok(ExitCode::from(server::EXIT_UNAVAILABLE));
    }
    let (lost_data, pid_file) = (args.lost_data, args.pid_file.clone());
    let settings = match configure(args).and_then(Config::validate) {
        Ok(settings) => server::Settings { lost_data, pid_file, ..settings },
        Err(error) => {
            tracing::error!("{error}");
            return Ok(misused());
        }
    };
    match server::run(&settings) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!("{error}");
            Ok(ExitCode::from(error.exit_code()))
        }
    }
}

/// The exit code that says that what was typed or configured is wrong, after which it is of no use to
/// start the server again.
pub(super) fn misused() -> ExitCode {
    ExitCode::from(server::EXIT_CONFIG)
}

/// The end of the standard input counts as SIGTERM.
fn stop_with_stdin() {
    // Whatever is written there is of no interest, and an unreadable input has ended.
    io::copy(&mut io::stdin(), &mut io::sink()).ok();
    if let Err(error) = kill_process(getpid(), Signal::TERM) {
        tracing::error!(%error, "the standard input has ended, but this server cannot stop itself");
    }
}

fn start_logging(args: &Args) -> anyhow::Result<()> {
    let wrong = || format!("--log {:?} is not a level or a filter", args.log);
    let filter = EnvFilter::try_new(&args.log).with_context(wrong)?;
    // A word that is neither is taken for the name of a part that logs nothing: so would the server.
    let is_word = !args.log.is_empty() && !args.log.contains([',', '=', ':', '[']);
    if is_word && args.log.parse::<LevelFilter>().is_err() {
        anyhow::bail!("{}; use error, warn, info, debug or trace", wrong());
    }
    let colour = io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false);
    match args.log_format {
        LogFormat::Human => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

fn configure(args: Args) -> Result<Config, ConfigError> {
    let mut config = Config::read(args.config.as_deref(), &args.settings)?;
    fn set<T>(key: &mut T, flag: Option<T>) {
        if let Some(value) = flag {
            *key = value;
        }
    }
    set(&mut config.id, args.id);
    set(&mut config.cluster, args.cluster);
    set(&mut config.client, args.client);
    set(&mut config.zookeeper, args.zookeeper);
    set(&mut config.peer, args.peer);
    set(&mut config.admin, args.admin);
    config.data_dir = args.data_dir.or(config.data_dir);
    config.log_dir = args.log_dir.or(config.log_dir);
    config.zookeeper_secure = args.zookeeper_secure.or(config.zookeeper_secure);
    if let (None, None, None, None) =
        (&args.tls_cert, &args.tls_key, &args.tls_ca, args.tls_client_auth)
    {
        // Only what the file has.
    } else {
        let tls = config.tls.get_or_insert_default();
        tls.cert = args.tls_cert.or(tls.cert.take());
        tls.key = args.tls_key.or(tls.key.take());
        tls.ca = args.tls_ca.or(tls.ca.take());
        set(&mut tls.client_auth, args.tls_client_auth);
    }
    config.zookeeper_enabled &= !args.no_zookeeper;
    config.admin_enabled &= !args.no_admin;
    config.insecure |= args.insecure;
    if !args.members.is_empty() {
        config.members = args.members;
    }
    Ok(config)
}

/// The words of the configuration file, with a line of help for each.
fn client_auth() -> impl TypedValueParser<Value = ClientAuth> {
    let words =
        [("none", "They are not asked"), ("optional", "They may"), ("required", "They must")];
    PossibleValuesParser::new(words.map(|(word, help)| PossibleValue::new(word).help(help)))
        .try_map(|word| ClientAuth::deserialize(StrDeserializer::<value::Error>::new(&word)))
}

fn member(text: &str) -> Result<MemberConfig, String> {
    let wrong = || "write it as ID=HOST:PORT or ID=HOST:PORT,observer".to_owned();
    let (id, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (peer, observer) = match rest.split_once(',') {
        None => (rest, false),
        Some((peer, "observer")) => (peer, true),
        Some(_) => return Err(wrong()),
    };
    let id = id.parse().map_err(|_| wrong())?;
    Ok(MemberConfig { id, peer: peer.into(), observer, zookeeper: None })
}
