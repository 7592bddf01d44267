//! The book of blocks balances: what the metadata names is in the bucket, whole; nothing is read twice; and the digest of
//! everything that is stored is the digest of what was read.
//!
//! Looked at once, at the end, after everything was flushed:
//!
//! - each block that is read has all its objects in the bucket, as long as was agreed, and recomputes to its digest
//! - no block is read beside one that replaced it
//! - blocks and memory hold together, by the digest the store keeps, just the samples that the last reads returned: count
//!   and both sums, so no sample is there that no read shows, and none is shown that is not counted
//! - after a flush the blocks hold at least as many samples as are stored (more where late blocks repeat some)
//!
//! Objects that no block names are no finding by themselves: blocks on their way in or out look like that. They are counted.

use super::Verdict;
use crate::history::{Answer, BlockSeen, Call, End, Found, History, Stage};
use crate::workload::Numbers;
use engram_model::digest::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// Checks the books of all tenants.
pub(super) fn check(history: &History, numbers: Numbers) -> Verdict {
    let mut verdict = Verdict::new("ledger", "blocks are whole and read once, and digests add up to what was read");
    let read = read(history);
    let (mut blocks_seen, mut compacted, mut orphans, mut tenants) = (0, 0, 0, 0);
    for op in &history.ops {
        let Call::Ledger { tenant } = op.call else { continue };
        let (Some(Answer::Ledger { blocks, stored, strangers }), End::Ok) = (&op.answer, op.end) else {
            verdict.cannot_tell(format!("the blocks of tenant {tenant} were not told: {}", op.why));
            continue;
        };
        tenants += 1;
        orphans += strangers.len() as u64;
        blocks_seen += blocks.len() as u64;
        compacted += blocks.iter().filter(|block| !block.sources.is_empty()).count() as u64;
        balance(tenant, blocks, &mut verdict);
        let held: u64 = blocks.iter().map(|block| block.samples).sum();
        if held < stored.count {
            verdict.fail(|| {
                format!("tenant {tenant}: blocks hold {held} samples after a flush, {} are stored", stored.count)
            });
        }
        let shown: Digest = (0..numbers.writers)
            .filter(|writer| numbers.tenant(*writer) == numbers.tenant(tenant))
            .filter_map(|writer| Some(digest(numbers, writer, read.get(&writer)?)))
            .sum();
        if shown != *stored {
            verdict.fail(|| format!("tenant {tenant}: {stored:?} is stored, {shown:?} was read"));
        }
    }
    if tenants > 0 && blocks_seen == 0 {
        verdict.cannot_tell("there was no block to look at".to_owned());
    }
    for (name, count) in
        [("tenants", tenants), ("blocks", blocks_seen), ("compacted", compacted), ("objects of nobody", orphans)]
    {
        verdict.count(name, count);
    }
    verdict
}

fn balance(tenant: u32, blocks: &[BlockSeen], verdict: &mut Verdict) {
    let replaced: BTreeSet<&str> = blocks.iter().flat_map(|block| &block.sources).map(String::as_str).collect();
    for block in blocks {
        if let Some(why) = &block.wrong {
            verdict.fail(|| format!("block {} of tenant {tenant}: {why}", block.id));
        }
        if replaced.contains(block.id.as_str()) {
            verdict.fail(|| format!("block {} of tenant {tenant} is read beside the one that replaced it", block.id));
        }
    }
}

/// What the last read of each writer returned.
pub(super) fn read(history: &History) -> BTreeMap<u32, &Found> {
    let mut last = BTreeMap::new();
    for op in &history.ops {
        if let (Call::Read { writer, stage: Stage::Again, .. }, Some(Answer::Samples(found)), End::Ok) =
            (&op.call, &op.answer, op.end)
        {
            last.insert(*writer, found);
        }
    }
    last
}

pub(super) fn digest(numbers: Numbers, writer: u32, found: &Found) -> Digest {
    let mut sum = Digest::EMPTY;
    for (series, runs) in &found.groups {
        for series in series {
            sum.add(numbers.digest(writer, *series, runs));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::planted::{history, op, read};
    use super::*;

    const NUMBERS: Numbers =
        Numbers { base: 1_790_000_000_000, tenants: 2, writers: 2, series: 1, step_ms: 10, late: true, shapes: true };

    fn block(id: &str, samples: u64, sources: &[&str]) -> BlockSeen {
        let sources = sources.iter().map(ToString::to_string).collect();
        BlockSeen { id: id.to_owned(), samples, sources, wrong: None }
    }

    fn stored(numbers: std::ops::RangeInclusive<u32>) -> Digest {
        let (first, last) = (*numbers.start(), *numbers.end());
        digest(NUMBERS, 0, &Found { groups: vec![(vec![0], vec![(first, last)])], odd: Vec::new() })
    }

    fn verdict(blocks: Vec<BlockSeen>, stored: Digest) -> Verdict {
        let answer = Answer::Ledger { blocks, stored, strangers: Vec::new() };
        let told = op(0, Call::Ledger { tenant: 0 }, 100, 101, End::Ok, Some(answer));
        check(&history(vec![read(0, 50, 9, Stage::Again, vec![(1, 9)]), told]), NUMBERS)
    }

    #[test]
    fn books_that_balance_pass_and_others_do_not() {
        let good = || vec![block("a", 4, &[]), block("b", 6, &["x", "y"])];
        let passed = verdict(good(), stored(1..=9));
        assert_eq!(passed.outcome, Outcome::Passed, "{:?}", passed.told);
        for (blocks, digest, what) in [
            (good(), stored(1..=8), "was read"),
            (good(), stored(2..=10), "was read"),
            (vec![block("a", 4, &[])], stored(1..=9), "hold 4"),
            (vec![block("a", 9, &[]), block("b", 9, &["a"])], stored(1..=9), "beside"),
            (vec![BlockSeen { wrong: Some("no index".to_owned()), ..block("a", 9, &[]) }], stored(1..=9), "no index"),
        ] {
            let failed = verdict(blocks, digest);
            assert_eq!(failed.outcome, Outcome::Failed, "{what}");
            assert!(failed.told.iter().any(|told| told.contains(what)), "{what}: {:?}", failed.told);
        }
    }

    #[test]
    fn a_book_without_blocks_proves_nothing() {
        assert_eq!(
            verdict(Vec::new(), stored(1..=9)).outcome,
            Outcome::Failed,
            "samples are stored that are in no block"
        );
        let answer = Answer::Ledger { blocks: Vec::new(), stored: Digest::EMPTY, strangers: Vec::new() };
        let told = op(0, Call::Ledger { tenant: 0 }, 100, 101, End::Ok, Some(answer));
        assert_eq!(check(&history(vec![told]), NUMBERS).outcome, Outcome::Unknown);
    }

    #[test]
    fn a_book_that_was_not_told_proves_nothing() {
        let told = op(0, Call::Ledger { tenant: 0 }, 100, 101, End::Unknown, None);
        assert_eq!(check(&history(vec![told]), NUMBERS).outcome, Outcome::Unknown);
    }
}
