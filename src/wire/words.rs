//! Four-letter words: what ZooKeeper's administrators type into a connection instead of a
//! handshake.

/// The bytes of a word.
pub const WORD_BYTES: usize = 4;

/// A four-letter word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(&'static str);

/// Every word that there is.
const WORDS: [&str; 18] = [
    "conf", "cons", "crst", "dirs", "dump", "envi", "gtmk", "hash", "isro", "mntr", "ruok", "srst",
    "srvr", "stat", "stmk", "wchc", "wchp", "wchs",
];

impl Word {
    /// The word that is written like this.
    pub fn parse(text: &str) -> Option<Word> {
        WORDS.into_iter().find(|word| *word == text).map(Word)
    }

    /// How it is written.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// The word with which a new connection begins, if it is one. No length of a frame looks like that.
pub(super) fn in_front(received: &[u8]) -> Option<Word> {
    Word::parse(std::str::from_utf8(received.get(..WORD_BYTES)?).ok()?)
}
