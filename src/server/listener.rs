//! The port where clients connect.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::{TcpListener, TcpSocket};

use crate::net::Port;
use crate::wire::Wire;

use super::clients::Clients;

/// The connections that the system holds for us until we accept them.
const BACKLOG: u32 = 4096;

/// Opens a port.
///
/// # Errors
/// If it is in use, or the address is none of this machine's.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port whose last owner has just gone can be had at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts clients for ever; `wire` makes what their connections speak.
pub(super) async fn accept(mut port: Port, clients: Rc<Clients>, wire: impl Fn() -> Wire) {
    loop {
        let incoming = port.accept().await;
        clients.accept(incoming, wire());
    }
}
