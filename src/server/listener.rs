//! The port where clients connect.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;

use crate::wire::Wire;

use super::clients::Clients;

/// The connections that the system holds for us until we accept them.
const BACKLOG: u32 = 4096;
/// How long to wait when the system has no room for another connection.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(50);

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
pub(super) async fn accept(listener: TcpListener, clients: Rc<Clients>, wire: impl Fn() -> Wire) {
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                // A connection that is gone already is found out by its task.
                socket.set_nodelay(true).ok();
                clients.accept(socket, address, wire());
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                sleep(NO_ROOM_PAUSE).await;
            }
        }
    }
}
