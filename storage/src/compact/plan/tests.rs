//! Goal: every plan is one that can be carried out, and carrying out plan after plan ends with no overlap and no job
//! left, whatever blocks there are. Method: random blocks (aligned and not, sharded and not), jobs carried out on the
//! metadata alone, the clock moved on.

use engram_model::block::{BlockFile, Origin};
use engram_model::digest::Digest;
use engram_model::tenant::TenantId;
use proptest::prelude::*;

use super::*;

const HOUR: i64 = 3_600_000;

fn block(id: u128, range: (i64, i64), shard: Option<Shard>, size: u64) -> BlockMeta {
    BlockMeta {
        id: BlockId(id),
        tenant: TenantId::anonymous(),
        range: TimeRange::new(range.0, range.1),
        level: 1,
        origin: Origin::Imported,
        shard,
        sources: Vec::new(),
        series: size,
        chunks: size,
        digest: Digest::EMPTY,
        files: vec![BlockFile { name: "index".to_owned(), bytes: size, crc32c: 0 }],
        as_of: 0,
        made_at: 0,
    }
}

fn rules() -> Rules {
    Rules { series_max: 100, bytes_max: 1000, sources_max: 6, ..Rules::default() }
}

fn plan_of(rules: &Rules, blocks: &[BlockMeta], deletions: &[Order], open: &[TimeRange], now: Millis) -> Vec<Job> {
    let blocks: Vec<_> = blocks.iter().collect();
    let busy = BTreeSet::new();
    let facts = Facts { blocks: &blocks, open, busy: &busy, deletions, is_free_of: &|_, _| false, now, clean: false };
    plan(rules, &facts)
}

/// The blocks after a job; samples are thought spread evenly.
fn carry_out(blocks: &mut Vec<BlockMeta>, job: &Job, next: &mut u128, now: Millis, as_of: u64) {
    let (gone, stay): (Vec<_>, Vec<_>) = blocks.drain(..).partition(|block| job.sources.contains(&block.id));
    assert_eq!(gone.len(), job.sources.len(), "sources are blocks that are there");
    *blocks = stay;
    let at = |start: i64| gone.iter().filter(move |block| block.range.contains(start));
    let size: u64 = gone.iter().map(|one| at(one.range.start).map(|block| block.series).sum()).max().unwrap_or(0);
    for output in &job.outputs {
        *next += 1;
        let size = (size / job.outputs.len() as u64).max(1);
        let range = (output.range.start, output.range.end);
        let made = BlockMeta { level: job.level, made_at: now, as_of, ..block(*next, range, output.shard, size) };
        blocks.push(made);
    }
    // Each time and hash of a source lies in exactly one output.
    for one in &gone {
        for at in [one.range.start, one.range.end - 1] {
            for hash in (0..128).filter(|hash| hash % shard_of(one).count == shard_of(one).index) {
                let takes = |output: &&Output| {
                    let shard = output.shard.unwrap_or(Shard { index: 0, count: 1 });
                    output.range.contains(at) && hash % shard.count == shard.index
                };
                assert_eq!(job.outputs.iter().filter(takes).count(), 1, "{at} {hash} of {one:?} in {job:?}");
            }
        }
    }
}

fn check(jobs: &[Job]) {
    let mut seen = BTreeSet::new();
    for job in jobs {
        assert!(job.sources.iter().all(|id| seen.insert(*id)), "a block is in two jobs");
        assert!(!job.outputs.is_empty() && job.outputs.len() <= OUTPUTS_MAX as usize);
        assert!(job.sources.is_sorted());
    }
}

/// Carries out plan after plan until there is none; says how many jobs that took.
fn converge(rules: &Rules, blocks: &mut Vec<BlockMeta>, deletions: &[Order]) -> usize {
    let (mut now, mut next, mut done) = (1_000_000 * HOUR, 1 << 100, 0);
    loop {
        now += 10_000 * HOUR;
        let jobs = plan_of(rules, blocks, deletions, &[], now);
        check(&jobs);
        if jobs.is_empty() {
            return done;
        }
        for job in &jobs {
            carry_out(blocks, job, &mut next, now, 1000);
            done += 1;
        }
        assert!(done < 5000, "it does not end");
    }
}

fn a_block() -> impl Strategy<Value = ((i64, i64), Option<Shard>, u64)> {
    let cut = (0_i64..40).prop_map(|n| (n * 2 * HOUR, (n + 1) * 2 * HOUR));
    let half_day = (0_i64..6).prop_map(|n| (n * 12 * HOUR, (n + 1) * 12 * HOUR));
    let odd = (-30_i64..2000, 1_i64..1500).prop_map(|(start, len)| (start * HOUR / 10, (start + len) * HOUR / 10));
    let shard = prop_oneof![
        4 => Just(None),
        1 => (0_u32..2).prop_map(|index| Some(Shard { index, count: 2 })),
        1 => (0_u32..4).prop_map(|index| Some(Shard { index, count: 4 })),
    ];
    (prop_oneof![4 => cut, 1 => half_day, 1 => odd], shard, 1_u64..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_plans_end_and_leave_no_overlap(
        found in proptest::collection::vec(a_block(), 0..40),
        deletion in proptest::option::of((0_i64..80, 1_i64..20)),
    ) {
        let mut blocks: Vec<_> =
            (1_u128..).zip(found).map(|(id, (range, shard, size))| block(id, range, shard, size)).collect();
        let deletions: Vec<_> = deletion
            .map(|(start, len)| Order { index: 7, range: TimeRange::new(start * HOUR, (start + len) * HOUR), at: 0 })
            .into_iter()
            .collect();
        converge(&rules(), &mut blocks, &deletions);
        for (i, a) in blocks.iter().enumerate() {
            for b in &blocks[..i] {
                let is_apart = !meet(shard_of(a), shard_of(b)) || !a.range.overlaps(b.range);
                prop_assert!(is_apart, "{:?} {:?} and {:?} {:?}", a.range, a.shard, b.range, b.shard);
                let day = |block: &BlockMeta| cell_of(block.range.start, 24 * HOUR);
                let is_one_day = day(a) == day(b) && a.range.end <= day(a).end && b.range.end <= day(a).end;
                prop_assert!(!is_one_day || !meet(shard_of(a), shard_of(b)), "two blocks of a day that meet");
            }
            prop_assert!(deletions.iter().all(|order| a.as_of >= order.index || !a.range.overlaps(order.range)));
        }
    }

    #[test]
    fn the_order_of_the_blocks_does_not_matter(found in proptest::collection::vec(a_block(), 0..30), turn in 0_usize..30) {
        let mut blocks: Vec<_> =
            (1_u128..).zip(found).map(|(id, (range, shard, size))| block(id, range, shard, size)).collect();
        let first = plan_of(&rules(), &blocks, &[], &[], 1_000_000 * HOUR);
        if !blocks.is_empty() {
            let len = blocks.len();
            blocks.rotate_left(turn % len);
        }
        prop_assert_eq!(first, plan_of(&rules(), &blocks, &[], &[], 1_000_000 * HOUR));
    }
}

fn window(id: u128, n: i64) -> BlockMeta {
    BlockMeta { made_at: (n + 1) * 2 * HOUR, ..block(id, (n * 2 * HOUR, (n + 1) * 2 * HOUR), None, 1) }
}

#[test]
fn a_day_of_windows_grows_by_levels() {
    // Three partitions, twelve windows.
    let mut blocks: Vec<_> = (0..36).map(|i| window(i + 1, i64::try_from(i).unwrap() / 3)).collect();
    let rules = Rules::default();
    let jobs = converge(&rules, &mut blocks, &[]);
    assert_eq!((jobs, blocks.len()), (12 + 2 + 1, 1));
    assert_eq!((blocks[0].level, blocks[0].range), (4, TimeRange::new(0, 24 * HOUR)));
}

#[test]
fn a_cell_waits_for_what_is_on_its_way() {
    let rules = Rules::default();
    let two = [window(1, 0), window(2, 0)];
    let at = |now, open: &[TimeRange], blocks: &[BlockMeta]| plan_of(&rules, blocks, &[], open, now).len();
    let quiet = 2 * HOUR + 2 * HOUR / SETTLE_PART;
    assert_eq!(at(quiet - 1, &[], &two), 0, "it has just come");
    assert_eq!(at(quiet, &[], &two), 1);
    assert_eq!(at(quiet, &[TimeRange::new(HOUR, 2 * HOUR)], &two), 0, "a seal is not cut");
    assert_eq!(at(quiet, &[TimeRange::new(2 * HOUR, 4 * HOUR)], &two), 1, "a seal of another window");
    let few = [window(1, 0), window(2, 1)];
    assert_eq!(at(9 * HOUR, &[], &few), 0, "the half day is not over");
    assert_eq!(at(16 * HOUR, &[], &few), 1, "nothing has come for half a day");
    let over = [window(1, 0), window(2, 1), window(3, 6)];
    assert_eq!(at(9 * HOUR, &[], &over), 1, "newer blocks show that it is over");
}

#[test]
fn a_large_tenant_is_divided_and_stays_so() {
    let rules = Rules { series_max: 100, ..Rules::default() };
    let mut blocks: Vec<_> =
        (0..24).map(|i| BlockMeta { series: 150, ..window(i + 1, i64::try_from(i).unwrap() / 2) }).collect();
    converge(&rules, &mut blocks, &[]);
    blocks.sort_by_key(|block| block.shard);
    let shards: Vec<_> = blocks.iter().map(|block| block.shard.unwrap().index).collect();
    assert_eq!(shards, [0, 1, 2, 3]);
    assert!(blocks.iter().all(|block| block.range == TimeRange::new(0, 24 * HOUR) && block.shard.unwrap().count == 4));
}

#[test]
fn a_late_block_is_merged_into_the_day_and_another_shard_is_left_alone() {
    let rules = Rules::default();
    let half = |index| Some(Shard { index, count: 2 });
    let day = |id, shard| block(id, (0, 24 * HOUR), shard, 10);
    let late = |shard| BlockMeta { made_at: 30 * HOUR, ..block(9, (2 * HOUR, 4 * HOUR), shard, 1) };
    let jobs = plan_of(&rules, &[day(1, half(0)), day(2, half(1)), late(half(1))], &[], &[], 32 * HOUR);
    assert_eq!(jobs.iter().map(|job| job.sources.clone()).collect::<Vec<_>>(), [[BlockId(2), BlockId(9)]]);
    assert_eq!(jobs[0].outputs, [Output { range: TimeRange::new(0, 24 * HOUR), shard: half(1) }]);
    let jobs = plan_of(&rules, &[day(1, half(0)), day(2, half(1)), late(None)], &[], &[], 32 * HOUR);
    assert_eq!(jobs[0].sources, [BlockId(1), BlockId(2), BlockId(9)]);
    assert_eq!(jobs[0].outputs.len(), 1, "small enough to be one again");
}

#[test]
fn a_deletion_rewrites_what_was_made_before_it_and_holds_it() {
    let rules = Rules::default();
    let new = BlockMeta { as_of: 9, ..block(2, (24 * HOUR, 48 * HOUR), None, 10) };
    let blocks = [block(1, (0, 24 * HOUR), None, 10), new, block(3, (48 * HOUR, 72 * HOUR), None, 10)];
    let order = Order { index: 5, range: TimeRange::new(0, 50 * HOUR), at: 100 * HOUR };
    assert!(plan_of(&rules, &blocks, &[order], &[], 100 * HOUR).is_empty(), "more may be deleted");
    let jobs = plan_of(&rules, &blocks, &[order], &[], 101 * HOUR);
    assert_eq!(jobs.iter().map(|job| job.sources[0]).collect::<Vec<_>>(), [BlockId(1), BlockId(3)]);
    let all: Vec<_> = blocks.iter().collect();
    let busy = BTreeSet::from([BlockId(3)]);
    let facts = Facts {
        blocks: &all,
        open: &[],
        busy: &busy,
        deletions: &[order],
        is_free_of: &|id, index| (id, index) == (BlockId(1), 5),
        now: 100 * HOUR,
        clean: true,
    };
    assert!(plan(&rules, &facts).is_empty(), "one holds nothing of it, one is being rewritten");
    let facts = Facts { is_free_of: &|_, _| false, ..facts };
    assert_eq!(plan(&rules, &facts).len(), 1, "a person asked for it now");
}

#[test]
fn times_at_the_ends_of_time_and_rules_that_make_no_sense() {
    let rules = Rules::default();
    let mut blocks = vec![block(1, (i64::MIN, i64::MAX), None, 1), block(2, (0, 5), None, 1)];
    let jobs = plan_of(&rules, &blocks, &[], &[], i64::MAX);
    check(&jobs);
    carry_out(&mut blocks, &jobs[0], &mut 100, 0, 0);
    assert!(rules.check(2 * HOUR).is_ok() && rules.check(HOUR).is_ok());
    for bad in [vec![], vec![0], vec![HOUR], vec![2 * HOUR, 2 * HOUR], vec![2 * HOUR, 5 * HOUR], vec![-HOUR]] {
        assert!(Rules { ranges_ms: bad.clone(), ..Rules::default() }.check(2 * HOUR).is_err(), "{bad:?}");
    }
    assert!(Rules { sources_max: 1, ..Rules::default() }.check(2 * HOUR).is_err());
}
