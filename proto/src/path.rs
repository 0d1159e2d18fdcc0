//! Paths of znodes, validated once at the edge and trusted from there on.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::limits;

/// An absolute path such as `/`, `/app` or `/app/members`. Cloning is cheap.
///
/// The rules are ZooKeeper's: it starts with `/`, does not end with one (but for the root), has no
/// empty, `.` or `..` part and no control, surrogate-area or non-character code points.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZPath(Arc<str>);

/// Why a text is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is empty or does not start with `/`.
    #[error("a path starts with '/'")]
    NotAbsolute,
    /// It ends with `/`.
    #[error("a path does not end with '/'")]
    TrailingSlash,
    /// Two slashes follow each other.
    #[error("a path has no empty part: '//' at byte {0}")]
    EmptyPart(usize),
    /// A part is `.` or `..`.
    #[error("a path has no '.' or '..' part")]
    RelativePart,
    /// A character is not allowed.
    #[error("the character {character:?} at byte {at} is not allowed in a path")]
    Character {
        /// Which one.
        character: char,
        /// Where.
        at: usize,
    },
    /// It is too long.
    #[error("a path has at most {max} bytes, this one has {0}", max = limits::PATH_BYTES)]
    TooLong(usize),
    /// It has too many parts.
    #[error("a path has at most {max} parts, this one has {0}", max = limits::PATH_DEPTH)]
    TooDeep(usize),
}

impl ZPath {
    /// The root, `/`.
    pub fn root() -> ZPath {
        ZPath("/".into())
    }

    /// The path of that text.
    ///
    /// # Errors
    /// If the text breaks one of the rules of paths.
    pub fn new(text: &str) -> Result<ZPath, PathError> {
        check(text)?;
        Ok(ZPath(text.into()))
    }

    /// What stands before the number in the path of a sequential node: a path, or one that ends
    /// with a `/`, after which the number is the whole name.
    ///
    /// # Errors
    /// If it is not a path once a digit is appended.
    pub fn prefix(text: &str) -> Result<ZPath, PathError> {
        check(&format!("{text}0"))?;
        Ok(ZPath(text.into()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `/`.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The number of its parts; 0 for the root.
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { self.0.matches('/').count() }
    }

    /// Its last part; empty for the root.
    pub fn name(&self) -> &str {
        &self.0[self.last_slash() + 1..]
    }

    /// The path above it; `None` for the root.
    pub fn parent(&self) -> Option<ZPath> {
        self.split().map(|(parent, _)| ZPath(parent.into()))
    }

    /// The path above it, as text, and its last part; `None` for the root.
    pub fn split(&self) -> Option<(&str, &str)> {
        if self.is_root() {
            return None;
        }
        let slash = self.last_slash();
        Some((&self.0[..slash.max(1)], &self.0[slash + 1..]))
    }

    /// The path of a child.
    ///
    /// # Errors
    /// If the name is not a single valid part, or the result is too long or too deep.
    pub fn child(&self, name: &str) -> Result<ZPath, PathError> {
        if name.is_empty() || name.contains('/') {
            return Err(PathError::EmptyPart(self.0.len()));
        }
        ZPath::new(&self.join(name))
    }

    /// The path below it with these parts, `relative` having no leading slash.
    ///
    /// # Errors
    /// If the result is not a path.
    pub fn descendant(&self, relative: &str) -> Result<ZPath, PathError> {
        ZPath::new(&self.join(relative))
    }

    /// Whether it is `other`, or lies below it.
    pub fn is_within(&self, other: &ZPath) -> bool {
        other.is_root()
            || self
                .0
                .strip_prefix(&*other.0)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Every path above it, the nearest first, the root last.
    pub fn ancestors(&self) -> impl Iterator<Item = ZPath> {
        std::iter::successors(self.parent(), ZPath::parent)
    }

    fn join(&self, relative: &str) -> String {
        let base = if self.is_root() { "" } else { &*self.0 };
        format!("{base}/{relative}")
    }

    fn last_slash(&self) -> usize {
        // Names are short: a search that is meant for long texts takes longer to begin than this to
        // end.
        self.0.as_bytes().iter().rposition(|&byte| byte == b'/').expect("a path has a slash")
    }
}

fn check(text: &str) -> Result<(), PathError> {
    let Some(rest) = text.strip_prefix('/') else { return Err(PathError::NotAbsolute) };
    if text.len() > limits::PATH_BYTES {
        return Err(PathError::TooLong(text.len()));
    }
    if rest.is_empty() {
        return Ok(());
    }
    if rest.ends_with('/') {
        return Err(PathError::TrailingSlash);
    }
    // Nearly every path is printable ASCII, all of which is allowed; only others are looked at
    // character by character. This runs for every request.
    let printable = text.bytes().fold(true, |so_far, byte| so_far & matches!(byte, 0x20..=0x7e));
    if !printable && let Some((at, character)) = text.char_indices().find(|&(_, c)| is_forbidden(c))
    {
        return Err(PathError::Character { character, at });
    }
    let mut depth = 0;
    let mut at = 1;
    for part in rest.as_bytes().split(|&byte| byte == b'/') {
        match part {
            b"" => return Err(PathError::EmptyPart(at)),
            b"." | b".." => return Err(PathError::RelativePart),
            _ => {}
        }
        depth += 1;
        at += part.len() + 1;
    }
    if depth > limits::PATH_DEPTH {
        return Err(PathError::TooDeep(depth));
    }
    Ok(())
}

/// ZooKeeper's `PathUtils.validatePath`; it works on UTF-16 units and so refuses surrogates, which
/// means that characters outside the basic plane are not allowed either.
fn is_forbidden(character: char) -> bool {
    matches!(u32::from(character),
        0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..=0xffff | 0x1_0000..)
}

impl Borrow<str> for ZPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<[u8]> for ZPath {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ZPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ZPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for ZPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<ZPath, PathError> {
        ZPath::new(text)
    }
}
