//! The ACLs of an exported tree, in a file at its top: a line of JSON for each node whose ACL does not
//! let everybody do everything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, bail};
use conclave_client::{Acl, Identity, Perms};
use serde::{Deserialize, Serialize};

use super::transfer::ACLS_FILE;

/// The permissions by their letters.
const LETTERS: [(char, Perms); 5] = [
    ('c', Perms::CREATE),
    ('d', Perms::DELETE),
    ('r', Perms::READ),
    ('w', Perms::WRITE),
    ('a', Perms::ADMIN),
];

/// A node's line.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Relative to the top, which is empty.
    path: String,
    acl: Vec<Grant>,
}

#[derive(Serialize, Deserialize)]
struct Grant {
    perms: String,
    scheme: String,
    id: String,
}

/// The line of the node with this path below the top; `None` if it needs none.
pub(super) fn line(path: &str, acl: &[Acl]) -> Option<String> {
    if Acl::is_open(acl) {
        return None;
    }
    let acl = acl.iter().map(|grant| Grant {
        perms: letters(grant.perms),
        scheme: grant.identity.scheme.clone(),
        id: grant.identity.id.clone(),
    });
    let line = Line { path: path.to_owned(), acl: acl.collect() };
    Some(serde_json::to_string(&line).expect("strings are JSON"))
}

/// What the file says of the nodes in a directory, which is the top of an export or a part of one.
#[derive(Default)]
pub(super) struct Acls {
    /// The directory's place below the top.
    dir: PathBuf,
    by_path: BTreeMap<String, Arc<[Acl]>>,
}

impl Acls {
    /// Nothing is said of a directory that has the file neither in itself nor above.
    ///
    /// # Errors
    /// If the file cannot be read: then nothing is known of any node.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Acls> {
        let dir = dir.canonicalize().with_context(|| format!("reading {}", dir.display()))?;
        let Some(top) = dir.ancestors().find(|above| above.join(ACLS_FILE).exists()) else {
            return Ok(Acls::default());
        };
        let name = top.join(ACLS_FILE);
        let file = File::open(&name).with_context(|| format!("reading {}", name.display()))?;
        let mut by_path = BTreeMap::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let (path, acl) = line
                .map_err(Error::from)
                .and_then(|line| parse(&line))
                .with_context(|| format!("{}, line {}", name.display(), number + 1))?;
            by_path.insert(path, acl);
        }
        let dir = dir.strip_prefix(top).expect("it is below").to_path_buf();
        Ok(Acls { dir, by_path })
    }

    /// The ACL of the node with this path below the directory.
    pub(super) fn of(&self, relative: &Path) -> Arc<[Acl]> {
        // Not with a slash at its end, which an empty path would bring.
        let path: PathBuf = self.dir.iter().chain(relative).collect();
        let known = path.to_str().and_then(|path| self.by_path.get(path));
        known.cloned().unwrap_or_else(Acl::open)
    }
}

fn parse(line: &str) -> anyhow::Result<(String, Arc<[Acl]>)> {
    let Line { path, acl } = serde_json::from_str(line)?;
    let acl = acl.into_iter().map(|grant| {
        let identity = Identity { scheme: grant.scheme, id: grant.id };
        Ok(Acl { perms: permissions(&grant.perms)?, identity })
    });
    Ok((path, acl.collect::<anyhow::Result<_>>()?))
}

fn letters(perms: Perms) -> String {
    LETTERS.iter().filter(|(_, one)| perms.contains(*one)).map(|(letter, _)| letter).collect()
}

fn permissions(letters: &str) -> anyhow::Result<Perms> {
    let mut perms = 0;
    for letter in letters.chars() {
        match LETTERS.iter().find(|(known, _)| *known == letter) {
            Some((_, one)) => perms |= one.0,
            None => bail!("{letter:?} is no permission; these are c, d, r, w and a"),
        }
    }
    Ok(Perms(perms))
}
