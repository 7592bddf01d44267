//! Goal: heads and blocks together answer what a naive model answers: no hole, no double, nothing that was deleted, also
//! while a cut or a compaction commits; what the store does wrong is told or mended. Method: a head in memory, blocks in
//! a bucket in memory that fails when told to, a real metadata group; samples are put into several places at random.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test")]

mod world;

use engram_model::block::{BlockFile, BlockId, BlockMeta, Origin};
use engram_model::error::Class;
use engram_model::series::{Columns, Wanted};
use engram_model::tenant::TenantLimits;
use engram_model::{Labels, MatchOp, Matcher, Millis, TimeRange};
use engram_node::blocks::uploader::{About, upload};
use engram_node::meta::blocks::Replacement;
use engram_node::read::QueryRequest;
use engram_node::read::cache::{PageKey, Pages};
use engram_node::read::fetch::Cost;
use engram_node::read::store::{BlockOptions, Blocks};
use engram_storage::block::{BlockWriter, Spec};
use engram_storage::chunk::{self, ValueRef};
use engram_storage::disk::real::RealDisk;
use engram_storage::object::block_key;
use engram_storage::object::faults::Fault;
use engram_storage::object::metrics::Op;
use engram_storage::ranges::File;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use world::{Hook, LONG, Model, WINDOW, World, digests, read, tenant};

fn labels(n: i64) -> Labels {
    Labels::from_pairs([("__name__", format!("m{}", n % 2)), ("i", n.to_string()), ("job", "x".to_owned())])
}

/// `count` samples of each of `series` series, a minute apart.
fn some(series: i64, count: i64, from: i64) -> Model {
    let samples = |n: i64| (0..count).map(|i| (from + i * 60_000, f64::from(i32::try_from(n * i).unwrap()))).collect();
    (0..series).map(|n| (labels(n), samples(n))).collect()
}

/// A small seeded generator (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Puts samples into head and blocks at random, with deletions in between; all that was put.
async fn scatter(world: &World, chance: &mut Chance) -> Model {
    let mut all = Model::new();
    for part in 0..4 {
        let mut place = Model::new();
        for (labels, samples) in some(5, 300, 0) {
            let take = samples.into_iter().filter(|_| chance.below(3) == 0);
            place.insert(labels, take.collect());
        }
        if part == 3 {
            world.head.data.lock().clone_from(&place);
        } else {
            world.add(part, &place, world.meta.index()).await;
        }
        for (labels, samples) in place {
            all.entry(labels).or_default().extend(samples);
        }
        if part < 3 && chance.below(2) == 0 {
            // What comes after a deletion in blocks made later is no longer hidden; the head's is.
            let (i, from) = (chance.below(5), i64::try_from(chance.below(9_000_000)).unwrap());
            let (selector, range) = (format!("{{i=\"{i}\"}}"), TimeRange::new(from, from + 3_000_000));
            world.meta.add_deletion("test", &tenant(), vec![selector], range, LONG).await.unwrap();
        }
    }
    all
}

/// What is left of what each place holds, told one by one.
async fn left(world: &World) -> Model {
    let look = world.meta.blocks(&tenant());
    let hidden = |labels: &Labels, at: Millis, as_of: u64| {
        let of = format!("{{i=\"{}\"}}", labels.get("i").unwrap());
        look.deletions.iter().any(|d| d.index > as_of && d.range.contains(at) && d.selectors[0] == of)
    };
    let mut places: Vec<(Model, u64)> = vec![(world.head.data.lock().clone(), 0)];
    for row in &look.blocks {
        let cost = Cost::default();
        let found = world.blocks.select(row, &[], TimeRange::ALL, 0, &cost).await.unwrap();
        let mut model = Model::new();
        for one in world.blocks.load(found, 0, &cost).await.unwrap() {
            let mut out = Columns::default();
            one.source.read(TimeRange::ALL, &mut out).unwrap();
            model.insert(one.labels, out.times.into_iter().zip(out.values).collect());
        }
        places.push((model, row.meta.as_of));
    }
    let mut all = Model::new();
    for (place, as_of) in &places {
        for (labels, samples) in place {
            let left = samples.iter().filter(|(at, _)| !hidden(labels, **at, *as_of));
            all.entry(labels.clone()).or_default().extend(left.map(|(at, v)| (*at, *v)));
        }
    }
    all.retain(|_, samples| !samples.is_empty());
    all
}

/// Samples go into head and blocks at random, deletions come in between: every way to read gives what is left.
#[tokio::test(flavor = "multi_thread")]
async fn heads_and_blocks_answer_as_one_without_what_is_deleted() {
    for seed in 0..6 {
        let world = World::new(seed % 2 == 0, TenantLimits::default()).await;
        let put = scatter(&world, &mut Chance(seed)).await;
        let all = left(&world).await;
        if world.meta.blocks(&tenant()).deletions.is_empty() {
            assert_eq!(all, put, "seed {seed}");
        }
        assert_eq!(world.read(&[], TimeRange::ALL).await, all, "seed {seed}");
        assert_eq!(world.view().digests(TimeRange::ALL).await.unwrap(), digests(&all), "seed {seed}");
        assert_eq!(world.view().label_values("job", &[], TimeRange::ALL).await.unwrap(), ["x".to_owned()].into());
        let count = all.values().map(BTreeMap::len).sum::<usize>();
        assert_eq!(world.count().await.unwrap(), f64::from(u32::try_from(count).unwrap()));

        let range = TimeRange::new(3_000_000, 9_000_000);
        let selector = vec![Matcher::new("i", MatchOp::Regex, "[0-2]").unwrap()];
        let mut part = all;
        part.retain(|labels, samples| {
            samples.retain(|at, _| range.contains(*at));
            !samples.is_empty() && selector[0].matches(labels.get("i").unwrap())
        });
        assert_eq!(world.read(&selector, range).await, part, "seed {seed}");
        let (view, selectors) = (world.view(), [selector]);
        let series = view.series(&selectors, range).await.unwrap();
        assert_eq!(series, part.keys().cloned().collect::<Vec<_>>(), "seed {seed}");
        let values = view.label_values("i", &selectors, range).await.unwrap();
        assert_eq!(values, part.keys().map(|l| l.get("i").unwrap().to_owned()).collect(), "seed {seed}");
        assert_eq!(view.label_names(&selectors, range).await.unwrap().len(), 3);
    }
}

/// The head is asked with a view of before; while it answers, a block of all it has is committed and it forgets.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_and_a_compaction_in_the_middle_of_a_query_leave_no_hole_and_no_double() {
    let world = World::new(false, TenantLimits::default()).await;
    let all = some(3, 50, 0);
    world.head.data.lock().clone_from(&all);
    assert_eq!(world.count().await.unwrap(), 150.0);

    let (during, model) = (world.clone(), all.clone());
    let hook: Hook = Box::pin(async move {
        during.add(1, &model, 0).await;
    });
    *world.head.hook.lock() = Some(hook);
    assert_eq!(world.count().await.unwrap(), 150.0, "the block is committed, the head has it still");
    assert_eq!(world.count().await.unwrap(), 150.0, "both have it");

    let (during, more) = (world.clone(), some(3, 50, WINDOW));
    world.head.data.lock().extend(more.clone());
    let hook: Hook = Box::pin(async move {
        during.add(2, &more, 0).await;
        during.head.data.lock().clear();
        *during.head.forgotten.lock() = during.meta.index();
    });
    *world.head.hook.lock() = Some(hook);
    assert_eq!(world.count().await.unwrap(), 300.0, "the head has forgotten: the query starts over");

    let stale = world.view();
    let mut both = all.clone();
    for (labels, samples) in some(3, 50, WINDOW) {
        both.entry(labels).or_default().extend(samples);
    }
    let lease = world.meta.lease("compact", LONG, LONG).await.unwrap().unwrap();
    let sources = world.meta.blocks(&tenant()).blocks.iter().map(|row| row.meta.id).collect::<Vec<_>>();
    let result =
        BlockMeta { level: 2, origin: Origin::Compacted, sources: sources.clone(), ..world.upload(3, &both, 0).await };
    let replacement = Replacement { sources, results: vec![result], ..Replacement::default() };
    world.meta.replace_blocks(&tenant(), replacement, &lease, LONG).await.unwrap();
    assert_eq!(world.count().await.unwrap(), 300.0);
    assert_eq!(world.view().block_rows().len(), 1);
    assert_eq!(world.blocks.open_count(), 1, "the sources are closed");
    assert_eq!(read(&stale, &[], TimeRange::ALL).await.unwrap(), both, "an older view reads the sources to its end");
    let usage = world.reader().usage(&tenant()).await.unwrap();
    assert_eq!((usage.series, usage.samples, usage.bounds), (1, 310, Some((0, WINDOW + 49 * 60_000))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_too_many_bytes_is_refused() {
    let limits = TenantLimits { max_fetched_chunk_bytes_per_query: 500, ..TenantLimits::default() };
    let world = World::new(false, limits).await;
    world.add(1, &some(20, 100, 0), 0).await;
    let error = world.count().await.unwrap_err();
    assert!(error.message.contains("max_fetched_chunk_bytes_per_query is 500"), "{error}");
    assert_eq!(error.class, Class::Invalid, "asking again cannot help");
    assert_eq!(world.faults.count(Op::Get).0, 2, "the index and meta.json before the upload; no chunk");
}

/// Goal: a matcher that selects little fetches little, and the query says so itself. Method: one block of a thousand series
/// whose values do not compress, one of them asked for with a cold cache, then again, then all.
#[tokio::test(flavor = "multi_thread")]
async fn a_matcher_that_selects_little_fetches_little_and_the_query_says_so() {
    let world = World::new(false, TenantLimits::default()).await;
    let chance = &mut Chance(3);
    let mut value = || f64::from_bits(chance.below(1 << 52) | 1 << 62);
    let samples = |value: &mut dyn FnMut() -> f64| (0..240).map(|i| (i * 15_000, value())).collect();
    let model: Model = (0..1000)
        .map(|i| (Labels::from_pairs([("__name__", "m"), ("n", &format!("{i:04}"))]), samples(&mut value)))
        .collect();
    let bytes = world.add(1, &model, 0).await.bytes();
    assert!(bytes > 1_500_000, "{bytes} bytes say nothing");
    let reader = world.reader();
    world.faults.forget();
    let mut all = Vec::new();
    for (text, want) in [("sum_over_time(m{n=\"0500\"}[1h])", 1), ("m{n=\"0500\"}", 1), ("count(m)", 1000)] {
        let request = QueryRequest {
            text: text.to_owned(),
            start: 239 * 15_000,
            end: 239 * 15_000,
            step_ms: 0,
            timeout: None,
            lookback_ms: None,
            limit: 0,
            explain: false,
            count_steps: false,
        };
        let stats = reader.query(&tenant(), request).await.unwrap().stats;
        assert_eq!((stats.series_total, stats.blocks.blocks), (want, 1), "{text}");
        all.push(stats.blocks);
    }
    let [cold, warm, whole] = &all[..] else { panic!("three queries") };
    assert!(cold.fetched_bytes < bytes / 8 && cold.fetch_requests <= 6 && cold.chunks <= 3, "{cold:?} of {bytes}");
    assert!(cold.chunk_bytes < 10_000, "{cold:?}");
    assert_eq!((warm.fetch_requests, warm.fetched_bytes), (0, 0), "it is cached");
    assert!(warm.cached_pages > 0 && whole.chunks >= 1000 && whole.fetched_bytes > 20 * cold.chunk_bytes, "{whole:?}");
    let sent: u64 = world.faults.seen().iter().map(|seen| seen.bytes).sum();
    assert_eq!(sent, cold.fetched_bytes + whole.fetched_bytes, "what is told is what the store has sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_read_again_or_told() {
    let world = World::new(false, TenantLimits::default()).await;
    let all = some(20, 100, 0);
    let block = world.add(1, &all, 0).await;
    let fresh = || World { blocks: Blocks::new(world.store.clone(), BlockOptions::default(), None), ..world.clone() };
    for (file, fault) in [("index", Fault::Flip(100)), ("000001", Fault::Flip(60)), ("000001", Fault::Cut(100))] {
        let cold = fresh();
        cold.faults.next(Op::Get, file, 1, fault);
        assert_eq!(cold.read(&[], TimeRange::ALL).await, all, "{file} {fault:?} came right the second time");
        let cold = fresh();
        cold.faults.next(Op::Get, file, 1000, fault);
        let error = read(&cold.view(), &[], TimeRange::ALL).await.unwrap_err();
        assert_eq!(error.class, Class::Internal, "{error}");
        assert!(error.message.contains(&block.id.to_string()), "{error}");
        cold.faults.clear();
        assert_eq!(cold.blocks.metrics().corrupt.load(Ordering::Relaxed), 1);
    }
    let cold = fresh();
    cold.faults.next(Op::Get, "index", 1, Fault::Fail);
    assert_eq!(read(&cold.view(), &[], TimeRange::ALL).await.unwrap_err().class, Class::Unavailable);
    assert_eq!(cold.read(&[], TimeRange::ALL).await, all, "opening is tried again");

    let view = cold.view();
    read(&view, &[], TimeRange::ALL).await.unwrap();
    assert_eq!(view.cost().requests.load(Ordering::Relaxed), 0, "all of it is cached");
    assert!(view.cost().cached_pages.load(Ordering::Relaxed) > 0);
    world.store.delete_block(&tenant(), block.id).await.unwrap();
    let error = read(&fresh().view(), &[], TimeRange::ALL).await.unwrap_err();
    assert_eq!(error.class, Class::Internal, "what metadata names must be there: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_on_disk_is_there_after_a_restart() {
    let world = World::new(false, TenantLimits::default()).await;
    world.add(1, &some(20, 100, 0), 0).await;
    let cache = world.dir.path().join("cache");
    let id = world.view().block_rows()[0].meta.id;
    let key = PageKey::new(id, File::Index, 0);
    loop {
        // Opened anew each time, as after a restart; what was read before the disk was open is not on it.
        let (pages, max) = (Pages::new(0), BlockOptions::default().disk_bytes_max);
        pages.open_disk(&RealDisk, &cache, max).unwrap();
        if pages.get(&[key]).await.len() == 1 {
            break;
        }
        let blocks = Blocks::new(world.store.clone(), BlockOptions::default(), Some(cache.clone()));
        assert_eq!(World { blocks, ..world.clone() }.read(&[], TimeRange::ALL).await.len(), 20);
    }
}

/// What a cold query costs, as a figure: a day of one metric's 1,000 series, out of a million that share a job.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: a figure, not a gate"]
async fn a_day_of_a_thousand_series_out_of_a_million_takes_few_requests() {
    let world = World::new(false, TenantLimits::default()).await;
    let (id, day) = (BlockId::new(1_700_000_000_000, 1), 12 * WINDOW);
    let (work, range) = (world.dir.path().join("work"), TimeRange::new(0, day));
    std::fs::create_dir_all(&work).unwrap();
    let mut writer = BlockWriter::create(Arc::new(RealDisk), &work, Spec::cut(id, range, WINDOW)).unwrap();
    let chance = &mut Chance(1);
    for metric in 0..1000 {
        for instance in 0..1000 {
            let labels = Labels::from_pairs([
                ("__name__", format!("metric_{metric:04}_total")),
                ("instance", format!("host-{instance:04}:9100")),
                ("job", "node".to_owned()),
                ("zone", format!("zone-{}", instance % 3)),
            ]);
            let count = if metric == 500 { 5760 } else { 10 };
            let mut value = 0.0;
            // As scraped: every 15 s, and every other value is the one before.
            let samples: Vec<_> = (0..count)
                .map(|i| {
                    value += f64::from(u32::try_from(chance.below(2) * chance.below(10)).unwrap());
                    (i * 15_000, value)
                })
                .collect();
            writer
                .add(&labels, &chunk::encode(samples.iter().map(|(at, v)| (*at, ValueRef::Float(*v))), WINDOW))
                .unwrap();
        }
    }
    let written = writer.finish().unwrap().unwrap();
    let about = About { tenant: tenant(), range, origin: Origin::Imported, as_of: 0, made_at: 0 };
    let meta = upload(&world.store, about, &written).await.unwrap();
    let bytes: u64 = meta.files.iter().map(|file| file.bytes).sum();
    world.meta.add_blocks("test", &tenant(), vec![meta], None, LONG).await.unwrap();
    let matchers = [Matcher::equal("__name__", "metric_0500_total"), Matcher::equal("job", "node")];
    for round in ["cold", "warm"] {
        world.faults.forget();
        let view = world.view();
        let series = view.samples(&matchers, range, Wanted::default()).await.unwrap();
        assert_eq!(series.len(), 1000);
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (requests, fetched) = (load(&view.cost().requests), load(&view.cost().bytes));
        eprintln!(
            "{round}: {requests} requests, {fetched} bytes, of them chunks {}; the block has {bytes} bytes",
            load(&view.cost().chunk_bytes)
        );
        for seen in world.faults.seen() {
            eprintln!("  {} {:?} {}", seen.key, seen.range, seen.bytes);
        }
        assert!(requests < 20 && fetched < 10_000_000);
    }
}

/// Goal: deleted times of a block of another system are honoured by instant queries and by lists of series. Method: one
/// series of three chunks; the file that names its times from the first hour's end on as deleted is put in the place of
/// the empty one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_deleted_of_a_block_hides_a_chunk_and_not_the_one_before() {
    for local in [true, false] {
        let world = World::new(local, TenantLimits::default()).await;
        let mut meta = world.upload(1, &some(1, 300, 0), 0).await;
        let (name, bytes) = (File::Tombstones.path(), tombstones(3_600_000, 1_000_000_000));
        let file = BlockFile { name: name.clone(), bytes: bytes.len() as u64, crc32c: 0 };
        world.store.put(&block_key(&tenant(), meta.id, &name), bytes.into()).await.unwrap();
        meta.files.retain(|file| file.name != name);
        meta.files.push(file);
        meta.files.sort_by(|a, b| a.name.cmp(&b.name));
        world.meta.add_blocks("test", &tenant(), vec![meta], None, LONG).await.unwrap();
        let view = world.view();
        let wanted = Wanted { last_only: true, labels: None };
        let series = view.samples(&[], TimeRange::ALL, wanted).await.unwrap();
        let mut out = Columns::default();
        series[0].source.read(TimeRange::ALL, &mut out).unwrap();
        assert_eq!(out.times.last(), Some(&(59 * 60_000)), "local: {local}");
        let everything = [vec![]];
        assert_eq!(view.series(&everything, TimeRange::ALL).await.unwrap().len(), 1);
        let late = TimeRange::new(WINDOW, 2 * WINDOW);
        assert!(view.series(&everything, late).await.unwrap().is_empty(), "nothing is left of it there");
        assert_eq!(
            world.view().label_values("i", &[vec![Matcher::equal("job", "x")]], late).await.unwrap(),
            BTreeSet::new()
        );
    }
}

/// The file that says that times were deleted, first and last inside, of the series at each of the first places.
fn tombstones(first: i64, last: i64) -> Vec<u8> {
    let mut entries = Vec::new();
    for series in 0..100 {
        for number in [series, (first << 1).cast_unsigned(), (last << 1).cast_unsigned()] {
            let mut rest = number;
            while rest >= 0x80 {
                entries.push(rest.to_le_bytes()[0] | 0x80);
                rest >>= 7;
            }
            entries.push(rest.to_le_bytes()[0]);
        }
    }
    let crc = !entries.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78))
    });
    [&[0x01, 0x30, 0xba, 0x30, 1][..], &entries, &crc.to_be_bytes()].concat()
}
