//! How the session is doing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::mailbox::{Mailbox, lock};

/// The states of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The session is open, on its first connection.
    Connected,
    /// The connection is lost and the client looks for another server. The session may live on or
    /// may expire: until [`Client::certain_until`](crate::Client::certain_until) it is alive for
    /// certain; after that only a server can tell.
    Suspended,
    /// Connected again, with the same session: nothing is lost, its ephemeral nodes and watches
    /// live on.
    Resumed,
    /// The servers ended the session. Its ephemeral nodes and watches are gone.
    Expired,
    /// The client was closed.
    Closed,
}

impl State {
    /// Whether there is a connection.
    pub const fn is_connected(self) -> bool {
        matches!(self, State::Connected | State::Resumed)
    }

    /// Whether this is the last state, after which no other comes.
    pub const fn is_final(self) -> bool {
        matches!(self, State::Expired | State::Closed)
    }
}

/// The states of a session from the moment of [`Client::states`](crate::Client::states) on, the
/// current one first, none left out; ends after [`State::Expired`] or [`State::Closed`].
pub struct States(Arc<Mailbox<State>>);

impl States {
    /// The next state; `None` after the last.
    pub async fn next(&mut self) -> Option<State> {
        std::future::poll_fn(|cx| self.0.poll_next(cx)).await
    }
}

impl Stream for States {
    type Item = State;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<State>> {
        self.0.poll_next(cx)
    }
}

/// States kept for a reader who does not read; older ones are forgotten first.
const KEPT: usize = 1024;

/// The current state and those who follow it.
pub(crate) struct StateBoard(Mutex<Board>);

struct Board {
    current: State,
    readers: Vec<Weak<Mailbox<State>>>,
}

impl StateBoard {
    pub(crate) fn new(current: State) -> StateBoard {
        StateBoard(Mutex::new(Board { current, readers: Vec::new() }))
    }

    pub(crate) fn current(&self) -> State {
        lock(&self.0).current
    }

    pub(crate) fn subscribe(&self) -> States {
        let mailbox = Arc::new(Mailbox::new());
        let mut board = lock(&self.0);
        tell(&mailbox, board.current);
        board.readers.retain(|reader| reader.strong_count() > 0);
        board.readers.push(Arc::downgrade(&mailbox));
        States(mailbox)
    }

    /// Nothing comes after a final state.
    pub(crate) fn set(&self, state: State) {
        let mut board = lock(&self.0);
        if board.current.is_final() {
            return;
        }
        board.current = state;
        board.readers.retain(|reader| match reader.upgrade() {
            Some(mailbox) => {
                tell(&mailbox, state);
                true
            }
            None => false,
        });
    }
}

fn tell(mailbox: &Mailbox<State>, state: State) {
    mailbox.update(|states| {
        if states.len() == KEPT {
            states.pop_front();
        }
        states.push_back(state);
    });
    if state.is_final() {
        mailbox.finish();
    }
}
