//! What the nodes of recipes hold: one line for the recipe, the rest for its user.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// What is wrong with a node that has no body.
pub(super) const NO_BODY: &str = "its first line is another one";

/// What a node of a recipe holds, as text: sixteen hexadecimal digits by which its maker knows it
/// again, a word for the recipe's own purposes, and, after a line feed, what the user gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// Distinguishes the nodes that one process makes.
    pub(super) tag: u64,
    pub(super) word: String,
    pub(super) text: Bytes,
}

impl Body {
    /// That of a new node.
    pub(super) fn new(word: &str, text: Bytes) -> Body {
        static TAGS: AtomicU64 = AtomicU64::new(1);
        Body { tag: TAGS.fetch_add(1, Ordering::Relaxed), word: word.to_owned(), text }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut data = format!("{:016x} {}\n", self.tag, self.word).into_bytes();
        data.extend_from_slice(&self.text);
        data.into()
    }

    /// What a node holds; `None` if no recipe wrote it.
    pub(super) fn decode(data: &Bytes) -> Option<Body> {
        let end = data.iter().position(|&byte| byte == b'\n')?;
        let (tag, word) = std::str::from_utf8(&data[..end]).ok()?.split_once(' ')?;
        if tag.len() != 16 {
            return None;
        }
        let tag = u64::from_str_radix(tag, 16).ok()?;
        Some(Body { tag, word: word.to_owned(), text: data.slice(end + 1..) })
    }
}
