//! Goal: which slots are fetched from whom. Method: digests by hand.

use std::sync::Arc;

use engram_model::tenant::TenantId;

use super::*;

fn digest(n: u64) -> Digest {
    Digest { count: n, low: n * 7, high: n * 11 }
}

fn select(start: Millis, end: Millis) -> Select {
    Select {
        tenant: TenantId::anonymous(),
        partition: PartitionId(0),
        epoch: Epoch(1),
        range: TimeRange { start, end },
        matchers: Arc::default(),
        series_max: 0,
        wanted: Arc::default(),
        as_of: u64::MAX,
    }
}

#[test]
fn equal_slots_are_not_fetched_and_others_once() {
    let own = vec![(0, digest(1)), (SLOT_MS, digest(2)), (2 * SLOT_MS, digest(3))];
    let same = (NodeId(2), own.clone());
    let wide = select(0, 100 * SLOT_MS);
    assert!(differing(&wide, (NodeId(1), &own), &[same.clone(), (NodeId(1), vec![(0, digest(9))])]).is_empty());
    // Two others that agree with each other: one is asked. Neighbouring slots are one range.
    let ahead = vec![(0, digest(1)), (SLOT_MS, digest(5)), (2 * SLOT_MS, digest(6)), (9 * SLOT_MS, digest(1))];
    let wanted = differing(&wide, (NodeId(1), &own), &[same, (NodeId(3), ahead.clone()), (NodeId(4), ahead)]);
    let range = |from: i64, to: i64| TimeRange { start: from * SLOT_MS, end: to * SLOT_MS };
    assert_eq!(wanted, vec![(NodeId(3), range(1, 3)), (NodeId(3), range(9, 10))]);
    // What lies outside of the range is not asked for; what another lacks gives nothing.
    let narrow = select(SLOT_MS + 5, SLOT_MS + 9);
    let wanted = differing(&narrow, (NodeId(1), &own), &[(NodeId(3), vec![(SLOT_MS, digest(5))])]);
    assert_eq!(wanted, vec![(NodeId(3), TimeRange { start: SLOT_MS + 5, end: SLOT_MS + 9 })]);
    assert!(differing(&wide, (NodeId(1), &own), &[(NodeId(3), vec![(0, Digest::EMPTY)])]).is_empty());
}

#[test]
fn many_ranges_become_one() {
    let many: SlotDigests = (0..40).map(|i| (2 * i * SLOT_MS, digest(1))).collect();
    let wanted = differing(&select(0, 1000 * SLOT_MS), (NodeId(1), &Vec::new()), &[(NodeId(2), many)]);
    assert_eq!(wanted, vec![(NodeId(2), TimeRange { start: 0, end: 79 * SLOT_MS })]);
}

#[test]
fn what_only_another_ring_can_mend_is_not_passed_over() {
    assert!(may_pass_over(&Error::unavailable("x")));
    assert!(!may_pass_over(&Error { stage: Stage::Stale, ..Error::unavailable("x") }));
    assert!(!may_pass_over(&Error::new(Class::Limited, "x")));
}
