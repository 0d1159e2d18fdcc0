//! Where Debian's packages have Apache ZooKeeper.

/// Where they put jars.
pub(crate) const DEBIAN_JARS: &str = "/usr/share/java";

/// Those that ZooKeeper's server and client need, of all there are.
pub(crate) const NEEDED_JARS: [&str; 10] = [
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "slf4j-nop",
    "netty-buffer",
    "netty-common",
    "netty-handler",
    "netty-transport",
    "netty-codec",
    "netty-resolver",
];
