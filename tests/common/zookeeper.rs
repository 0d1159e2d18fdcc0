//! Where Apache ZooKeeper is on this machine.

#[path = "../../src/cli/bench/jars.rs"]
mod jars;

use std::path::Path;
use std::process::{Command, Stdio};

use jars::{DEBIAN_JARS, NEEDED_JARS};

/// A directory with ZooKeeper's jars, in place of Debian's packages.
const JARS_VARIABLE: &str = "ZOOKEEPER_JARS";

/// The jars of ZooKeeper, and these of Debian's beside them; or why they are not here.
pub(crate) fn class_path(others: &[&str]) -> Result<String, String> {
    let java = Command::new("java").arg("-version").stderr(Stdio::null()).status();
    if !java.is_ok_and(|status| status.success()) {
        return Err("there is no Java".into());
    }
    let jar = |name: &&str| format!("{DEBIAN_JARS}/{name}.jar");
    let mut jars: Vec<_> = others.iter().map(jar).collect();
    if let Some(missing) = jars.iter().find(|jar| !Path::new(jar).exists()) {
        return Err(format!("there is no {missing}"));
    }
    if let Some(dir) = std::env::var_os(JARS_VARIABLE) {
        jars.push(format!("{}/*", Path::new(&dir).display()));
        return Ok(jars.join(":"));
    }
    if !Path::new(&jar(&"zookeeper")).exists() {
        return Err(format!(
            "there is no ZooKeeper in {DEBIAN_JARS} (Debian: libzookeeper-java libslf4j-java \
             libnetty-java), and {JARS_VARIABLE} names no directory"
        ));
    }
    jars.extend(NEEDED_JARS.iter().map(jar));
    Ok(jars.join(":"))
}
