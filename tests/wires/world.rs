//! Words of the tables that are values.

use conclave_proto::{Identity, ZPath};

pub(crate) fn identity(text: &str) -> Identity {
    let (scheme, id) = text.split_once(':').expect("an identity is scheme:id");
    Identity { scheme: scheme.to_owned(), id: id.to_owned() }
}

pub(crate) fn path(text: &str) -> ZPath {
    ZPath::prefix(text).unwrap()
}
