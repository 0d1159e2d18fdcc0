//! A client's own root: the paths of its caller lie below a node of the servers' tree.

use conclave_proto::request::Reply;
use conclave_proto::{PathError, ZPath};

use crate::Error;

/// Anything that can be the path of an operation. Borrowed and owned text is validated when the
/// operation is made; a [`ZPath`] is not validated again.
pub trait IntoPath {
    /// The path.
    ///
    /// # Errors
    /// If the text breaks one of the rules of paths.
    fn into_path(self) -> Result<ZPath, Error>;
}

impl IntoPath for &str {
    fn into_path(self) -> Result<ZPath, Error> {
        ZPath::new(self).map_err(|why| Error::Path { path: self.to_owned(), why })
    }
}

impl IntoPath for String {
    fn into_path(self) -> Result<ZPath, Error> {
        self.as_str().into_path()
    }
}

impl IntoPath for &String {
    fn into_path(self) -> Result<ZPath, Error> {
        self.as_str().into_path()
    }
}

impl IntoPath for ZPath {
    fn into_path(self) -> Result<ZPath, Error> {
        Ok(self)
    }
}

impl IntoPath for &ZPath {
    fn into_path(self) -> Result<ZPath, Error> {
        Ok(self.clone())
    }
}

/// The root of a client's paths; `None` is the servers' own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chroot(Option<ZPath>);

impl Chroot {
    /// The root at that path.
    pub(crate) fn at(path: ZPath) -> Chroot {
        Chroot((!path.is_root()).then_some(path))
    }

    /// The servers' path for a caller's.
    pub(crate) fn to_server(&self, path: &ZPath) -> Result<ZPath, Error> {
        self.join(path).map_err(|why| Error::Path { path: path.to_string(), why })
    }

    /// The caller's path for a server's. One that lies outside stays what it is: only a server
    /// that does not keep to the protocol sends it.
    pub(crate) fn to_caller(&self, path: ZPath) -> ZPath {
        let Some(root) = &self.0 else { return path };
        if path == *root {
            return ZPath::root();
        }
        match path.as_str().strip_prefix(root.as_str()).map(ZPath::new) {
            Some(Ok(below)) => below,
            Some(Err(_)) | None => path,
        }
    }

    /// The caller's reply for a server's.
    pub(crate) fn reply_to_caller(&self, reply: Reply) -> Reply {
        if self.0.is_none() {
            return reply;
        }
        match reply {
            Reply::Created { path, stat } => Reply::Created { path: self.to_caller(path), stat },
            Reply::Paths(paths) => {
                Reply::Paths(paths.into_iter().map(|path| self.to_caller(path)).collect())
            }
            Reply::Multi { held, replies } => Reply::Multi {
                held,
                replies: replies.into_iter().map(|reply| self.reply_to_caller(reply)).collect(),
            },
            Reply::Done
            | Reply::Stat(_)
            | Reply::Data { .. }
            | Reply::Children { .. }
            | Reply::Names { .. }
            | Reply::Acl { .. }
            | Reply::Count(_)
            | Reply::DeletedMany { .. }
            | Reply::MultiRead(_)
            | Reply::Identities(_) => reply,
        }
    }

    fn join(&self, path: &ZPath) -> Result<ZPath, PathError> {
        match &self.0 {
            None => Ok(path.clone()),
            Some(root) if path.is_root() => Ok(root.clone()),
            Some(root) => ZPath::new(&format!("{root}{path}")),
        }
    }
}
