//! Ports for servers that a test starts and that must know each other's before they listen.

use std::net::TcpListener;

/// Below those that the system gives to whoever connects, which may take any of its own at any time.
const FIRST: u16 = 10_000;
const BLOCK: u16 = 100;
const BLOCKS: u16 = 100;

/// Ports in a row that no other test gets, in this process or another, while this value lives.
pub(crate) struct Ports {
    /// The block's first port is held for as long as the others are in use.
    claim: TcpListener,
}

impl Ports {
    /// Ports of which nobody makes use.
    pub(crate) fn claim() -> Ports {
        let start = std::process::id();
        for offset in 0..u32::from(BLOCKS) {
            let block =
                u16::try_from((start + offset) % u32::from(BLOCKS)).expect("a small number");
            let first = FIRST + block * BLOCK;
            if let Ok(claim) = listen(first)
                && (first + 1..first + BLOCK).all(|port| listen(port).is_ok())
            {
                return Ports { claim };
            }
        }
        panic!("all ports from {FIRST} on are taken");
    }

    /// The first of the ports; at least 98 more follow.
    pub(crate) fn first(&self) -> u16 {
        self.claim.local_addr().expect("it listens").port() + 1
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port))
}
