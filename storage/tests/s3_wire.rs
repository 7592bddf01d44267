//! Goal: what the store says over the wire is understood by a real S3 server: whole blocks, large files in parts,
//! ranges, lists of many pages, who creates first, and what is not there. Method: moto, a server of S3's protocol in
//! Python, started by each test on a free port; `scripts/e2e-s3` installs it and runs these tests, which are left out
//! otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

#[allow(unreachable_pub, reason = "tests of two crates use it")]
mod moto;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use engram_model::block::BlockId;
use engram_model::tenant::TenantId;
use engram_model::{Class, Classed};
use engram_storage::Error;
use engram_storage::object::metrics::Op;
use engram_storage::object::options::{Checksum, Encryption, Options};
use engram_storage::object::{Store, block_key};
use moto::Moto;

fn tenant() -> TenantId {
    TenantId::new("a!*'()-1").unwrap()
}

fn lay(dir: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |n: usize| (0..n).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<_>>();
    let all =
        vec![("chunks/000001", bytes(12 << 20)), ("index", bytes(70_000)), ("meta.json", b"{\"ulid\":\"x\"}".to_vec())];
    std::fs::create_dir_all(dir.join("chunks")).unwrap();
    for (name, bytes) in &all {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    all
}

#[tokio::test]
#[ignore = "needs moto: scripts/e2e-s3"]
async fn blocks_go_and_come_over_the_wire() {
    let (moto, work) = (Moto::start().await, tempfile::tempdir().unwrap());
    let all = lay(work.path());
    for (encryption, checksum) in [
        (Encryption::Bucket, Checksum::Signature),
        (Encryption::Store, Checksum::Sha256),
        (Encryption::Kms, Checksum::Crc64),
    ] {
        let options = Options { encryption, checksum, sse_kms_key: "k".to_owned(), ..moto.options() };
        let store = Store::open(&options, Path::new("unused")).unwrap();
        let id = BlockId::new(1_700_000_000_000, 42);
        let files = store.put_block(work.path(), &tenant(), id).await.unwrap();
        for ((name, bytes), file) in all.iter().zip(&files) {
            assert_eq!((*name, bytes.len() as u64, crc32c::crc32c(bytes)), (&*file.name, file.bytes, file.crc32c));
            let key = block_key(&tenant(), id, name);
            assert_eq!(store.size(&key).await.unwrap(), Some(file.bytes));
            assert_eq!(store.get(&key).await.unwrap().unwrap(), *bytes);
            assert_eq!(store.get_range(&key, 3, 9).await.unwrap(), bytes[3..12]);
        }
        assert_eq!(store.put_block(work.path(), &tenant(), id).await.unwrap(), files);
        assert_eq!(store.list_tenants().await.unwrap(), [tenant()]);
        assert_eq!(store.list_blocks(&tenant()).await.unwrap(), [id]);
        assert_eq!(store.block_files(&tenant(), id).await.unwrap().len(), 3);
        store.delete_block(&tenant(), id).await.unwrap();
        assert!(store.list_blocks(&tenant()).await.unwrap().is_empty());
        assert_eq!(store.metrics().of(Op::Put).errors.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
#[ignore = "needs moto: scripts/e2e-s3"]
async fn one_of_many_creates_and_lists_have_many_pages() {
    let moto = Moto::start().await;
    let store = Store::open(&moto.options(), Path::new("unused")).unwrap();
    for round in 0..20 {
        let key = format!("race/{round}");
        let tries = (0..16_u8).map(|i| {
            let (store, key) = (store.clone(), key.clone());
            async move { store.create(&key, vec![i].into()).await.unwrap_or(false).then_some(i) }
        });
        let won: Vec<u8> = futures::future::join_all(tries).await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(store.get(&key).await.unwrap().unwrap(), won);
    }
    let puts = (0..1100).map(|i| {
        let store = store.clone();
        async move { store.put(&format!("many/{i:04}/x"), Bytes::from_static(b"x")).await.unwrap() }
    });
    futures::future::join_all(puts).await;
    assert_eq!(store.list_dirs("many").await.unwrap().len(), 1100);
    let files = store.list_files("many").await.unwrap();
    assert_eq!((files.len(), files[1099].clone()), (1100, ("1099/x".to_owned(), 1)));
}

#[tokio::test]
#[ignore = "needs moto: scripts/e2e-s3"]
async fn what_is_not_there_is_told_apart_from_what_cannot_be_reached() {
    let moto = Moto::start().await;
    let store = Store::open(&moto.options(), Path::new("unused")).unwrap();
    assert_eq!(store.get("no/such").await.unwrap(), None);
    assert_eq!(store.size("no/such").await.unwrap(), None);
    store.remove("no/such").await.unwrap();
    store.put("t/x", Bytes::from_static(b"12345")).await.unwrap();
    assert!(matches!(store.get_range("t/x", 3, 3).await, Err(Error::Corrupt { .. })), "the object ends before");

    let elsewhere = Options { url: "s3://no-such-bucket".to_owned(), ..moto.options() };
    let elsewhere = Store::open(&elsewhere, Path::new("unused")).unwrap();
    assert!(elsewhere.put("t/x", Bytes::new()).await.is_err());
    let nobody = Options {
        endpoint: "http://127.0.0.1:1".to_owned(),
        retries_max: 1,
        backoff_min: Duration::from_millis(1),
        ..moto.options()
    };
    let error = Store::open(&nobody, Path::new("unused")).unwrap().get("t/x").await.unwrap_err();
    assert_eq!(error.class(), Class::Unavailable, "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}
