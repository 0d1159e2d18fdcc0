//! Fencing tokens: what makes a lock safe for what lies outside of it.

use std::fmt;
use std::str::FromStr;

use conclave_proto::Zxid;

/// A fencing token: a number that only grows. Whoever gets a lock, a lease or the leadership later
/// has a greater one.
///
/// Send it along with everything that is done outside of Conclave under the lock's protection, and
/// let the receiving side refuse tokens that are less than the greatest it has seen ([`Fence`]): a
/// holder that was paused and does not know that it is none any more can then do no harm.
///
/// It is the transaction ([`Zxid`]) that created the node which stands for the hold, so tokens of
/// different locks can be compared too. `Display` writes it as a decimal number, which
/// [`FromStr`] reads back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// The token with this number.
    pub const fn new(number: u64) -> Token {
        Token(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The transaction that created the node which stands for the hold.
    pub const fn zxid(self) -> Zxid {
        Zxid::from_bits(self.0)
    }
}

impl From<Zxid> for Token {
    fn from(zxid: Zxid) -> Token {
        Token(zxid.bits())
    }
}

impl From<Token> for u64 {
    fn from(token: Token) -> u64 {
        token.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Token {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Token, Self::Err> {
        text.parse().map(Token)
    }
}

/// The other side of fencing: what a storage keeps for each thing that a lock protects.
///
/// ```
/// use conclave_client::recipes::{Fence, Token};
///
/// let mut fence = Fence::default();
/// fence.admit(Token::new(7))?;
/// fence.admit(Token::new(7))?; // The same holder again.
/// fence.admit(Token::new(9))?; // The next holder.
/// assert!(fence.admit(Token::new(7)).is_err()); // The first one wakes up from a pause.
/// # Ok::<(), conclave_client::recipes::StaleToken>(())
/// ```
///
/// Keep [`newest`](Fence::newest) with the data, and change it in the same write: a fence that
/// forgets is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    newest: Option<Token>,
}

impl Fence {
    /// A fence that has seen this token already.
    pub const fn at(newest: Token) -> Fence {
        Fence { newest: Some(newest) }
    }

    /// The greatest token seen.
    pub const fn newest(&self) -> Option<Token> {
        self.newest
    }

    /// Lets a request with this token pass, and remembers the token.
    ///
    /// # Errors
    /// If a greater one was seen.
    pub fn admit(&mut self, token: Token) -> Result<(), StaleToken> {
        match self.newest {
            Some(newest) if token < newest => Err(StaleToken { token, newest }),
            _ => {
                self.newest = Some(token);
                Ok(())
            }
        }
    }
}

/// A token from the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token {token} is from the past: {newest} was seen since, so it is held by another")]
pub struct StaleToken {
    /// The token that was refused.
    pub token: Token,
    /// The greatest token seen.
    pub newest: Token,
}
