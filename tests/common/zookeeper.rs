//! Where Apache ZooKeeper is on this machine.

#[path = "../../src/cli/bench/jars.rs"]
mod jars;

use std::path::Path;
use std::process::{Command, Stdio};

use jars::{DEBIAN_JARS, NEEDED_JARS};

/// A directory with ZooKeeper's jars, in place of Debian's packages.
const JARS_VARIABLE: &str = "ZOOKEEPER_JARS";

/// The jars of ZooKeeper; or why there is no ZooKeeper here.
pub(crate) fn class_path() -> Result<String, String> {
    let java = Command::new("java").arg("-version").stderr(Stdio::null()).status();
    if !java.is_ok_and(|status| status.success()) {
        return Err("there is no Java".into());
    }
    if let Some(dir) = std::env::var_os(JARS_VARIABLE) {
        return Ok(format!("{}/*", Path::new(&dir).display()));
    }
    let jar = |name: &&str| format!("{DEBIAN_JARS}/{name}.jar");
    if !Path::new(&jar(&"zookeeper")).exists() {
        return Err(format!(
            "there is no ZooKeeper in {DEBIAN_JARS} (Debian: libzookeeper-java libslf4j-java \
             libnetty-java), and {JARS_VARIABLE} names no directory"
        ));
    }
    Ok(NEEDED_JARS.iter().map(jar).collect::<Vec<_>>().join(":"))
}
