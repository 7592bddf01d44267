//! Goal: a block that was put is whole and durable, or is not there; what comes back is what went in; what the store
//! does wrong is noticed. Method: the same steps over a directory and a bucket in memory; power cut at every act of the
//! directory's disk; requests that fail, hang, lie and come back short, ordered one by one.

use super::faults::{Fault, FaultStore, Faults};
use super::*;
use crate::disk::fault::FaultDisk;
use crate::error::RemoteKind;
use std::collections::BTreeMap;

const ROOT: &str = "store";

type Files = BTreeMap<String, Vec<u8>>;

fn tenant() -> TenantId {
    TenantId::new("t!*'()-1").unwrap()
}

fn id() -> BlockId {
    BlockId::new(1_700_000_000_000, 42)
}

/// Files of something that looks like a block.
fn files(salt: u8, chunk_bytes: usize) -> Files {
    let bytes = |n: usize| (0..n).map(|i| u8::try_from(i % 251).unwrap() ^ salt).collect::<Vec<_>>();
    [("chunks/000001", bytes(chunk_bytes)), ("chunks/000002", bytes(17)), ("index", bytes(3000))]
        .into_iter()
        .chain([("meta.json", format!("{{\"salt\":{salt}}}").into_bytes())])
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .collect()
}

/// Lays them down durably.
fn lay(disk: &dyn Disk, dir: &Path, files: &Files) {
    disk.create_dir(&dir.join("chunks")).unwrap();
    for (name, bytes) in files {
        let file = disk.create(&dir.join(name)).unwrap();
        file.write_at(0, bytes).unwrap();
        file.sync_all().unwrap();
    }
    disk.sync_dir(&dir.join("chunks")).unwrap();
    disk.sync_dir(dir).unwrap();
}

fn on_disk(salt: u8, chunk_bytes: usize) -> (FaultDisk, Files) {
    let (disk, all) = (FaultDisk::new(), files(salt, chunk_bytes));
    lay(&disk, Path::new("work"), &all);
    (disk, all)
}

fn bucket(disk: &FaultDisk, options: &Options) -> (Store, Faults) {
    FaultStore::memory(Arc::new(disk.clone()), options)
}

/// All of a block that can be read back.
async fn read(store: &Store) -> Files {
    let mut all = Files::new();
    for (name, len) in store.block_files(&tenant(), id()).await.unwrap() {
        let bytes = store.get_range(&block_key(&tenant(), id(), &name), 0, len).await.unwrap();
        all.insert(name, bytes.to_vec());
    }
    all
}

async fn put(store: &Store) -> Result<Vec<BlockFile>, Error> {
    store.put_block(Path::new("work"), &tenant(), id()).await
}

async fn round(store: &Store, work: &Path, all: &Files) {
    let listed = store.put_block(work, &tenant(), id()).await.unwrap();
    let want: Vec<_> = all
        .iter()
        .map(|(name, b)| BlockFile { name: name.clone(), bytes: b.len() as u64, crc32c: crc32c_append(0, b) })
        .collect();
    assert_eq!(listed, want);
    assert_eq!(read(store).await, *all);
    assert_eq!(store.put_block(work, &tenant(), id()).await.unwrap(), want, "the same block is put again");
    assert_eq!(store.list_tenants().await.unwrap(), [tenant()]);
    assert_eq!(store.list_blocks(&tenant()).await.unwrap(), [id()]);
    let key = block_key(&tenant(), id(), "index");
    assert_eq!(store.get_range(&key, 5, 7).await.unwrap(), all["index"][5..12]);
    assert_eq!(store.get_range(&key, 5, 0).await.unwrap(), Bytes::new());
    assert!(matches!(store.get_range(&key, 2999, 2).await, Err(Error::Corrupt { .. })), "behind the end");
    assert!(store.get_range("no/such", 0, 1).await.unwrap_err().is_not_found());
    assert_eq!(store.size(&key).await.unwrap(), Some(3000));
    assert_eq!(store.size("no/such").await.unwrap(), None);
    assert_eq!(store.get(&key).await.unwrap().unwrap(), all["index"]);
    assert_eq!(store.get("no/such").await.unwrap(), None);
    store.delete_block(&tenant(), id()).await.unwrap();
    store.delete_block(&tenant(), id()).await.unwrap();
    assert!(store.block_files(&tenant(), id()).await.unwrap().is_empty());
    assert!(store.list_blocks(&tenant()).await.unwrap().is_empty());
    for wrong in ["../x", "a/../x", "/x"] {
        assert!(store.local_root().is_none() || store.get(wrong).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn blocks_come_back_from_a_directory_and_from_a_bucket() {
    let (disk, all) = on_disk(0, 100);
    let local = Store::local(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
    round(&local, Path::new("work"), &all).await;
    round(&bucket(&disk, &Options::default()).0, Path::new("work"), &all).await;

    let dir = tempfile::tempdir().unwrap();
    lay(&RealDisk, &dir.path().join("work"), &all);
    let options = Options { url: dir.path().join("blocks").display().to_string(), ..Options::default() };
    let real = Store::open(&options, Path::new("unused")).unwrap();
    round(&real, &dir.path().join("work"), &all).await;
    put(&real).await.unwrap_err();
    assert_eq!(real.metrics().of(Op::Delete).errors.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(real.metrics().of(Op::Put).bytes.load(std::sync::atomic::Ordering::Relaxed) > 3000);
}

#[tokio::test]
async fn large_files_go_in_parts() {
    let (disk, all) = on_disk(1, 11 << 20);
    let (store, faults) = bucket(&disk, &Options { part_bytes: 5 << 20, ..Options::default() });
    round(&store, Path::new("work"), &all).await;
    // One to begin, three parts, one to end; then three small files.
    assert_eq!(faults.count(Op::Put).0, 8);
    faults.add(faults::Rule { op: Op::Put, key_has: "000001".into(), skip: 2, times: 1, fault: Fault::Fail });
    put(&store).await.unwrap_err();
    assert!(!read(&store).await.contains_key("chunks/000001"), "half a file is not there");
    round(&store, Path::new("work"), &all).await;
}

#[tokio::test]
async fn another_block_of_the_same_name_is_not_written_over() {
    let (disk, all) = on_disk(0, 100);
    lay(&disk, Path::new("other"), &files(9, 50));
    for store in [Store::local(Arc::new(disk.clone()), Path::new(ROOT)).unwrap(), bucket(&disk, &Options::default()).0]
    {
        put(&store).await.unwrap();
        let other = store.put_block(Path::new("other"), &tenant(), id()).await;
        assert!(matches!(other, Err(Error::Misuse { .. })), "{other:?}");
        assert_eq!(read(&store).await, all);
        let nothing = store.put_block(Path::new("nowhere"), &tenant(), id()).await;
        assert!(matches!(nothing, Err(Error::Misuse { .. })), "{nothing:?}");
    }
}

#[tokio::test]
async fn of_many_who_create_one_wins() {
    let (disk, _) = on_disk(0, 1);
    for store in [Store::local(Arc::new(disk.clone()), Path::new(ROOT)).unwrap(), bucket(&disk, &Options::default()).0]
    {
        let tries = (0..16_u8).map(|i| {
            let store = store.clone();
            async move { store.create("t/mark", vec![i].into()).await.unwrap_or(false).then_some(i) }
        });
        let won: Vec<_> = futures::future::join_all(tries).await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1);
        assert_eq!(store.get("t/mark").await.unwrap().unwrap(), won);
        store.put("t/mark", Bytes::from_static(b"over")).await.unwrap();
        assert_eq!(store.get("t/mark").await.unwrap().unwrap(), "over");
        assert_eq!(store.list_files("t").await.unwrap(), [("mark".to_owned(), 4)]);
        store.remove("t/mark").await.unwrap();
        assert!(store.create("t/mark", Bytes::new()).await.unwrap());
    }
}

/// The power fails at every act of an upload: before `put_block` says so a block may be there, whole; after, it is.
#[tokio::test]
async fn a_crash_while_a_block_is_put_leaves_a_whole_one_or_none() {
    for at in 0.. {
        let (disk, all) = on_disk(0, 600);
        let store = Store::local(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
        disk.stop_after(at);
        let done = put(&store).await;
        disk.crash(at);
        let there = read(&store).await;
        if done.is_ok() || there.contains_key("meta.json") {
            assert_eq!(there, all, "stopped after {at} acts");
        }
        if done.is_ok() {
            assert!(at > 10, "the power failed in between");
            break;
        }
        put(&store).await.unwrap();
        disk.crash(at + 1);
        assert_eq!(read(&store).await, all, "tried again after {at} acts");
    }
}

#[tokio::test]
async fn a_crash_while_a_block_is_deleted_leaves_a_whole_one_or_one_without_its_last_file() {
    for at in 0.. {
        let (disk, all) = on_disk(0, 600);
        let store = Store::local(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
        put(&store).await.unwrap();
        disk.stop_after(at);
        let done = store.delete_block(&tenant(), id()).await;
        disk.crash(at);
        let there = read(&store).await;
        if there.contains_key("meta.json") {
            assert!(done.is_err());
            assert_eq!(there, all, "stopped after {at} acts");
        }
        if done.is_ok() {
            break;
        }
        store.delete_block(&tenant(), id()).await.unwrap();
        assert!(store.list_blocks(&tenant()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_upload_that_fails_leaves_no_block_and_may_be_tried_again() {
    let (disk, all) = on_disk(0, 100);
    for (key, fault) in [
        ("000001", Fault::Fail),
        ("index", Fault::FailAfter),
        ("meta.json", Fault::Fail),
        ("meta.json", Fault::FailAfter),
    ] {
        let (store, faults) = bucket(&disk, &Options::default());
        faults.next(Op::Put, key, 1, fault);
        let error = put(&store).await.unwrap_err();
        assert_eq!(engram_model::Classed::class(&error), engram_model::Class::Unavailable, "{error}");
        let has_meta = read(&store).await.contains_key("meta.json");
        assert_eq!(has_meta, (key, fault) == ("meta.json", Fault::FailAfter));
        put(&store).await.unwrap();
        assert_eq!(read(&store).await, all);
    }
}

#[tokio::test]
async fn what_comes_short_or_not_at_all_is_noticed() {
    let (disk, all) = on_disk(0, 100);
    let (store, faults) = bucket(&disk, &Options::default());
    put(&store).await.unwrap();
    let key = block_key(&tenant(), id(), "index");
    faults.next(Op::Get, "index", 2, Fault::Cut(9));
    assert!(matches!(store.get_range(&key, 0, 10).await, Err(Error::Corrupt { .. })));
    assert!(matches!(store.get(&key).await, Err(Error::Corrupt { .. })));
    faults.next(Op::Get, "index", 1, Fault::Flip(0));
    assert_ne!(store.get_range(&key, 0, 10).await.unwrap(), all["index"][..10], "checksums inside must find that");
    faults.next(Op::Get, "index", 1, Fault::Fail);
    assert!(store.get(&key).await.is_err());
    assert_eq!(store.get(&key).await.unwrap().unwrap(), all["index"]);
    assert_eq!(store.metrics().of(Op::Get).errors.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_given_up() {
    let (disk, _) = on_disk(0, 100);
    let options =
        Options { timeout: Duration::from_secs(3), retry_timeout: Duration::from_secs(4), ..Options::default() };
    let (store, faults) = bucket(&disk, &options);
    faults.next(Op::List, "", 1, Fault::Delay(Duration::from_secs(6)));
    store.list_tenants().await.unwrap();
    faults.next(Op::List, "", 1, Fault::Delay(Duration::from_secs(8)));
    let error = store.list_tenants().await.unwrap_err();
    assert!(matches!(error, Error::Remote { kind: RemoteKind::Timeout, .. }), "{error}");
}

#[tokio::test]
async fn a_stale_list_shows_what_is_gone() {
    let (disk, _) = on_disk(0, 100);
    let faults = Faults::default();
    let inner = FaultStore::new(Arc::new(object_store::memory::InMemory::new()), faults);
    let store = Store::over(Arc::new(inner.clone()), "pre/fix", Arc::new(disk), &Options::default());
    put(&store).await.unwrap();
    inner.freeze_lists(true).await.unwrap();
    store.delete_block(&tenant(), id()).await.unwrap();
    assert_eq!(store.list_blocks(&tenant()).await.unwrap(), [id()]);
    assert_eq!(store.block_files(&tenant(), id()).await.unwrap().len(), 4);
    assert_eq!(store.get(&block_key(&tenant(), id(), "meta.json")).await.unwrap(), None);
    inner.freeze_lists(false).await.unwrap();
    assert!(store.list_blocks(&tenant()).await.unwrap().is_empty());
}
