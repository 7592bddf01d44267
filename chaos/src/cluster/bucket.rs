//! The bucket blocks lie in, as who looks from outside sees it: a directory that all nodes share, or our own store.

use super::store::Objects;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A bucket.
#[derive(Clone, Debug)]
pub(crate) enum Bucket {
    /// A directory of this machine.
    Folder(PathBuf),
    /// An object store of ours.
    Ours(Objects),
}

impl Bucket {
    /// How long an object is; `None`: it is not there.
    pub(crate) fn bytes(&self, key: &str) -> Option<u64> {
        match self {
            Self::Folder(root) => std::fs::metadata(root.join(key)).ok().map(|file| file.len()),
            Self::Ours(objects) => objects.bytes(key),
        }
    }

    /// What a tenant has there: its blocks, and what may be left of others.
    pub(crate) fn of(&self, tenant: &str) -> BTreeSet<String> {
        match self {
            Self::Folder(root) => {
                let there = std::fs::read_dir(root.join(tenant)).into_iter().flatten().flatten();
                there.filter_map(|one| one.file_name().into_string().ok()).collect()
            }
            Self::Ours(objects) => objects.below(&format!("{tenant}/")),
        }
    }

    /// Who has anything there.
    pub(crate) fn tenants(&self) -> BTreeSet<String> {
        match self {
            Self::Folder(_) => self.of(""),
            Self::Ours(objects) => objects.below(""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_a_bucket() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("t/block")).unwrap();
        std::fs::write(root.path().join("t/block/index"), "12345").unwrap();
        let bucket = Bucket::Folder(root.path().to_owned());
        assert_eq!((bucket.bytes("t/block/index"), bucket.bytes("t/block/meta.json")), (Some(5), None));
        assert_eq!(
            (bucket.of("t"), bucket.tenants()),
            (BTreeSet::from(["block".into()]), BTreeSet::from(["t".into()]))
        );
        assert!(bucket.of("nobody").is_empty());
    }
}
