//! What becomes of a packet: the rules of the network, apart from how packets come and go.
//!
//! Each direction of each pair is a lane. A packet that comes is, in this order: cut off, ends its connection, is lost, is
//! turned, waits for what is before it in a narrow lane, is late, is held back so that others overtake it, comes twice.
//! A lane in which packets are late keeps their order unless it is told not to. What waits is bounded, a lane that is full
//! drops what comes, as routers do. Time is handed in, chance is seeded, so tests need neither a device nor a clock.

use super::packet::{Flow, Head, turn};
use crate::cluster::links::{Rule, Rules};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

/// Bytes that wait in a lane at most; in a narrow one so many less that they wait for two seconds at most.
const WAITING_BYTES_MAX: u64 = 8 << 20;
const NARROW_SECONDS_MAX: u64 = 2;
/// Of the smallest packets.
const WAITING_MAX: u64 = 16_384;
/// Connections that are being ended.
const ENDING_MAX: usize = 4096;
/// How long both ends of one are told.
const ENDING_FOR: Duration = Duration::from_secs(2);
/// How long a packet is held back that others are to overtake, milliseconds.
const HELD_MS: std::ops::RangeInclusive<u64> = 1..=20;
/// By how much a packet's double is later, microseconds.
const DOUBLE_LATER_US: std::ops::RangeInclusive<u64> = 0..=5_000;

/// Who sends, and to whom.
pub(crate) type Pair = (usize, usize);

/// What became of the packets of one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Arrived, doubles among them.
    pub(crate) arrived: u64,
    pub(crate) cut: u64,
    /// Ended their connection instead.
    pub(crate) broken: u64,
    pub(crate) lost: u64,
    pub(crate) turned: u64,
    /// Waited.
    pub(crate) late: u64,
    /// Arrived after one that was sent later.
    pub(crate) overtaken: u64,
    /// Sent twice.
    pub(crate) doubled: u64,
    /// Found no room.
    pub(crate) full: u64,
}

impl Counts {
    /// Since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            arrived: self.arrived - before.arrived,
            cut: self.cut - before.cut,
            broken: self.broken - before.broken,
            lost: self.lost - before.lost,
            turned: self.turned - before.turned,
            late: self.late - before.late,
            overtaken: self.overtaken - before.overtaken,
            doubled: self.doubled - before.doubled,
            full: self.full - before.full,
        }
    }

    /// What a rule does to packets, each with how many of them it met.
    pub(crate) fn met(&self, rule: Rule) -> Vec<(&'static str, u64)> {
        let all = [
            (rule.cut, "cut off", self.cut),
            (rule.breaks > 0, "reset", self.broken),
            (rule.delay_ms > 0 || rule.jitter_ms > 0, "late", self.late),
            (rule.bytes_per_second > 0, "late or without room", self.late + self.full),
            (rule.lost > 0, "lost", self.lost),
            (rule.turned > 0, "turned", self.turned),
            (rule.overtaken > 0, "overtaken", self.overtaken),
            (rule.doubled > 0, "doubled", self.doubled),
        ];
        all.into_iter().filter(|(is, ..)| *is).map(|(_, what, count)| (what, count)).collect()
    }
}

/// One direction of one pair.
#[derive(Debug, Default)]
struct Lane {
    counts: Counts,
    /// When a narrow line has done with what it carries.
    free_at: Duration,
    /// When the last of those arrives that keep their order.
    due: Duration,
    waiting: u64,
    waiting_bytes: u64,
    /// Packets that came, and the number of the latest that has arrived.
    came: u64,
    arrived: u64,
}

/// A packet on its way. What is due first is first, and of several of one time the one that came first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Duration,
    number: u64,
    pair: Pair,
    /// Its place in the lane; 0: it is a double.
    place: u64,
    bytes: Vec<u8>,
}

/// All lanes of a switch.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: BTreeMap<Pair, Lane>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    ending: HashMap<Flow, Duration>,
    chance: StdRng,
    number: u64,
}

impl Lanes {
    pub(super) fn new(seed: u64) -> Self {
        let (lanes, waiting, ending) = (BTreeMap::new(), BinaryHeap::new(), HashMap::new());
        Self { lanes, waiting, ending, chance: StdRng::seed_from_u64(seed), number: 0 }
    }

    /// What became of packets until now.
    pub(super) fn counts(&self) -> BTreeMap<Pair, Counts> {
        self.lanes.iter().map(|(pair, lane)| (*pair, lane.counts)).collect()
    }

    /// When the first of those that wait is due.
    pub(super) fn next(&self) -> Option<Duration> {
        self.waiting.peek().map(|Reverse(first)| first.due)
    }

    /// Gives out what is due.
    pub(super) fn pass(&mut self, now: Duration, rules: &Rules, give: &mut impl FnMut(usize, &[u8])) {
        while self.next().is_some_and(|due| due <= now) {
            let Some(Reverse(packet)) = self.waiting.pop() else { return };
            let lane = self.lanes.entry(packet.pair).or_default();
            lane.waiting -= 1;
            lane.waiting_bytes -= packet.bytes.len() as u64;
            if rules.rule(packet.pair.0, packet.pair.1).cut {
                lane.counts.cut += 1;
            } else {
                lane.arrives(packet.place);
                give(packet.pair.1, &packet.bytes);
            }
        }
    }

    /// Takes a packet that came, after [`Self::pass`] of the same moment: gives it out, keeps it, or does not.
    pub(super) fn take(
        &mut self,
        (pair, head): (Pair, &Head),
        bytes: &mut [u8],
        rules: &Rules,
        now: Duration,
        give: &mut impl FnMut(usize, &[u8]),
    ) {
        let rule = rules.rule(pair.0, pair.1);
        let lane = self.lanes.entry(pair).or_default();
        lane.came += 1;
        if rule.cut {
            lane.counts.cut += 1;
            return;
        }
        if self.ends(pair, head, rule, now) {
            for (to, packet) in [pair.1, pair.0].into_iter().zip(head.resets().into_iter().flatten()) {
                give(to, &packet);
            }
            return;
        }
        let lane = self.lanes.entry(pair).or_default();
        if hit(rule.lost, &mut self.chance) {
            lane.counts.lost += 1;
            return;
        }
        if hit(rule.turned, &mut self.chance) {
            turn(bytes, &mut self.chance);
            lane.counts.turned += 1;
        }
        if !lane.has_room(bytes.len(), rule) {
            lane.counts.full += 1;
            return;
        }
        lane.free_at = lane.free_at.max(now) + rule.occupies(bytes.len());
        lane.due = lane.due.max(lane.free_at + rule.delay(&mut self.chance));
        lane.counts.late += u64::from(lane.due > now);
        let (mut due, place) = (lane.due, lane.came);
        if hit(rule.overtaken, &mut self.chance) {
            due += Duration::from_millis(self.chance.random_range(HELD_MS));
        }
        if hit(rule.doubled, &mut self.chance) {
            lane.counts.doubled += 1;
            let later = Duration::from_micros(self.chance.random_range(DOUBLE_LATER_US));
            self.keep(pair, 0, due + later, bytes);
        }
        if due <= now {
            self.lanes.entry(pair).or_default().arrives(place);
            give(pair.1, bytes);
        } else {
            self.keep(pair, place, due, bytes);
        }
    }

    /// Whether the connection of a packet ends in its place.
    fn ends(&mut self, pair: Pair, head: &Head, rule: Rule, now: Duration) -> bool {
        let (Some(flow), Some(tcp)) = (head.flow(), head.tcp) else { return false };
        let ending = match self.ending.get(&flow) {
            // The same ports are used anew, or all has been said.
            Some(until) if tcp.begins() || now >= *until => {
                self.ending.remove(&flow);
                false
            }
            Some(_) => true,
            None => false,
        };
        if !ending && tcp.carries > 0 && hit(rule.breaks, &mut self.chance) {
            self.lanes.entry(pair).or_default().counts.broken += 1;
            if self.ending.len() >= ENDING_MAX {
                self.ending.retain(|_, until| now < *until);
            }
            if self.ending.len() < ENDING_MAX {
                self.ending.insert(flow, now + ENDING_FOR);
            }
            return true;
        }
        // What an end says itself goes its way: two that answer each other's resets would do so for ever.
        ending && !tcp.resets()
    }

    fn keep(&mut self, pair: Pair, place: u64, due: Duration, bytes: &[u8]) {
        let lane = self.lanes.entry(pair).or_default();
        lane.waiting += 1;
        lane.waiting_bytes += bytes.len() as u64;
        self.number += 1;
        self.waiting.push(Reverse(Waiting { due, number: self.number, pair, place, bytes: bytes.to_vec() }));
    }
}

impl Lane {
    fn has_room(&self, bytes: usize, rule: Rule) -> bool {
        let narrow = rule.bytes_per_second.saturating_mul(NARROW_SECONDS_MAX);
        let bytes_max = if narrow == 0 { WAITING_BYTES_MAX } else { narrow.min(WAITING_BYTES_MAX) };
        self.waiting < WAITING_MAX && self.waiting_bytes + bytes as u64 <= bytes_max
    }

    fn arrives(&mut self, place: u64) {
        self.counts.arrived += 1;
        if place > 0 {
            self.counts.overtaken += u64::from(place < self.arrived);
            self.arrived = self.arrived.max(place);
        }
    }
}

/// Whether it happens to this one, of ten thousand so often.
fn hit(of_10_000: u32, chance: &mut StdRng) -> bool {
    of_10_000 > 0 && chance.random_range(0..10_000) < of_10_000
}

#[cfg(test)]
mod tests {
    //! Goal: each rule does to packets what it says and nothing else, and is counted. Method: packets that name themselves
    //! in their last bytes; time is a number.

    use super::super::packet::tests::{ONE, OTHER, garbage, segment};
    use super::*;
    use crate::cluster::links::Links;

    const PAIR: Pair = (0, 1);
    const MS: Duration = Duration::from_millis(1);

    struct Bench {
        lanes: Lanes,
        links: Links,
        now: Duration,
        got: Vec<(usize, Vec<u8>)>,
    }

    impl Bench {
        fn new(rule: Rule) -> Self {
            let links = Links::new();
            links.set(&[PAIR], rule);
            Self { lanes: Lanes::new(7), links, now: MS, got: Vec::new() }
        }

        fn send(&mut self, body: &[u8]) {
            self.wait(Duration::ZERO);
            let (mut packet, rules) = (segment(ONE, OTHER, 16, body), self.links.watch().borrow().clone());
            let head = Head::of(&packet).unwrap();
            let got = &mut self.got;
            let mut give = |to: usize, bytes: &[u8]| got.push((to, bytes.to_vec()));
            self.lanes.take((PAIR, &head), &mut packet, &rules, self.now, &mut give);
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
            let (rules, got) = (self.links.watch().borrow().clone(), &mut self.got);
            self.lanes.pass(self.now, &rules, &mut |to, bytes| got.push((to, bytes.to_vec())));
        }

        /// What has arrived at the other end, by number.
        fn numbers(&self) -> Vec<u32> {
            let ours = self.got.iter().filter(|(to, _)| *to == PAIR.1);
            ours.map(|(_, packet)| u32::from_be_bytes(packet[40..44].try_into().unwrap())).collect()
        }

        fn counts(&self) -> Counts {
            self.lanes.counts().remove(&PAIR).unwrap_or_default()
        }

        /// Sends many, a millisecond apart, and waits until all are through.
        fn stream(&mut self, count: u32) {
            for number in 0..count {
                self.send(&number.to_be_bytes());
                self.wait(MS);
            }
            self.wait(Duration::from_secs(10));
        }
    }

    #[test]
    fn an_open_lane_gives_at_once_and_a_cut_one_nothing() {
        let mut bench = Bench::new(Rule::default());
        bench.send(&7_u32.to_be_bytes());
        assert!(bench.numbers() == [7] && bench.lanes.next().is_none());
        bench.links.set(&[PAIR], Rule { delay_ms: 50, ..Rule::default() });
        bench.send(&8_u32.to_be_bytes());
        bench.links.set(&[PAIR], Rule { cut: true, ..Rule::default() });
        bench.send(&9_u32.to_be_bytes());
        bench.wait(100 * MS);
        assert_eq!(bench.numbers(), [7], "what was on its way is cut off as well");
        assert_eq!(bench.counts(), Counts { arrived: 1, cut: 2, late: 1, ..Counts::default() });
    }

    #[test]
    fn late_packets_keep_their_order() {
        let mut bench = Bench::new(Rule { delay_ms: 20, jitter_ms: 30, ..Rule::default() });
        bench.send(&0_u32.to_be_bytes());
        bench.wait(19 * MS);
        assert!(bench.got.is_empty());
        bench.stream(200);
        let numbers = bench.numbers();
        assert!(numbers.len() == 201 && numbers[1..].is_sorted() && bench.counts().overtaken == 0);
    }

    #[test]
    fn a_narrow_lane_carries_its_bytes_and_is_full_at_some_point() {
        // 52 bytes each: 20 milliseconds.
        let mut bench = Bench::new(Rule { bytes_per_second: 2_600, ..Rule::default() });
        for number in 0..300_u32 {
            bench.send(&[number.to_be_bytes(), [0; 4], [0; 4]].concat());
        }
        bench.wait(Duration::from_millis(1_001));
        assert_eq!(bench.numbers().len(), 50);
        bench.wait(Duration::from_secs(10));
        let counts = bench.counts();
        assert!(counts.arrived == 100 && counts.full == 200, "two seconds of them wait: {counts:?}");
    }

    #[test]
    fn shares_of_packets_are_lost_doubled_turned_and_overtaken() {
        let mut bench = Bench::new(Rule { lost: 1_000, ..Rule::default() });
        bench.stream(2_000);
        let lost = bench.counts().lost;
        assert!((150..250).contains(&lost) && bench.numbers().len() as u64 == 2_000 - lost);

        let mut bench = Bench::new(Rule { doubled: 1_000, ..Rule::default() });
        bench.stream(2_000);
        let doubled = bench.counts().doubled;
        assert!((150..250).contains(&doubled) && bench.numbers().len() as u64 == 2_000 + doubled);
        assert_eq!(bench.counts().overtaken, 0, "a double was not overtaken, it came twice");

        let mut bench = Bench::new(Rule { turned: 1_000, ..Rule::default() });
        bench.stream(2_000);
        let turned = bench.counts().turned;
        let wrong =
            |(number, (_, packet)): (u32, &(usize, Vec<u8>))| *packet != segment(ONE, OTHER, 16, &number.to_be_bytes());
        assert!(
            (150..250).contains(&turned) && (0..).zip(&bench.got).filter(|one| wrong(*one)).count() as u64 == turned
        );

        let mut bench = Bench::new(Rule { overtaken: 1_000, ..Rule::default() });
        bench.stream(2_000);
        let mut numbers = bench.numbers();
        let (mut last, mut late) = (0, 0);
        for number in &numbers {
            late += u64::from(*number < last);
            last = last.max(*number);
        }
        assert!(late > 100 && bench.counts().overtaken == late);
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..2_000), "all are there, each once");
    }

    #[test]
    fn a_connection_that_is_broken_ends_for_both() {
        let mut bench = Bench::new(Rule { breaks: 10_000, ..Rule::default() });
        // What carries nothing breaks nothing.
        bench.send(b"");
        assert!(bench.got.len() == 1 && bench.counts().broken == 0);
        bench.send(b"data");
        let resets = |(to, packet): &(usize, Vec<u8>)| Head::of(packet).unwrap().tcp.unwrap().resets().then_some(*to);
        assert_eq!(bench.got[1..].iter().filter_map(resets).collect::<Vec<_>>(), [1, 0]);
        // Whoever goes on is told again, also when the rule is gone; a new connection of the same ports is not.
        bench.links.heal();
        bench.send(b"");
        assert_eq!(bench.got[3..].iter().filter_map(resets).count(), 2);
        let (mut new, rules) = (segment(ONE, OTHER, 2, b""), Rules::default());
        let head = Head::of(&new).unwrap();
        let mut given = Vec::new();
        bench.lanes.take((PAIR, &head), &mut new, &rules, bench.now, &mut |to, _| given.push(to));
        bench.send(b"data");
        assert!(given == [1] && bench.counts().broken == 1 && bench.got.len() == 6);
    }

    #[test]
    fn packets_of_any_kind_pass_under_every_rule_and_none_stays() {
        let rule = Rule { breaks: 500, lost: 500, doubled: 500, overtaken: 500, turned: 500, ..Rule::OPEN };
        let mut bench = Bench::new(Rule { delay_ms: 5, jitter_ms: 5, bytes_per_second: 100_000, ..rule });
        let (mut chance, mut taken) = (StdRng::seed_from_u64(5), 0);
        for round in 0..20_000 {
            let mut packet = garbage(round, &mut chance);
            let Some(head) = Head::of(&packet) else { continue };
            bench.wait(MS / 2);
            let rules = bench.links.watch().borrow().clone();
            let got = &mut bench.got;
            let mut give = |to: usize, bytes: &[u8]| got.push((to, bytes.to_vec()));
            bench.lanes.take((PAIR, &head), &mut packet, &rules, bench.now, &mut give);
            taken += 1;
        }
        bench.wait(Duration::from_secs(10));
        let counts = bench.counts();
        let met = [counts.broken, counts.lost, counts.doubled, counts.overtaken, counts.turned, counts.late];
        assert!(met.iter().all(|count| *count > 0) && bench.lanes.next().is_none(), "{counts:?}");
        let lane = &bench.lanes.lanes[&PAIR];
        assert!(
            (lane.waiting, lane.waiting_bytes, lane.came) == (0, 0, taken) && bench.lanes.ending.len() <= ENDING_MAX
        );
    }

    #[test]
    fn what_waits_is_bounded_and_the_same_seed_does_the_same() {
        let run = || {
            let mut bench = Bench::new(Rule { delay_ms: 60_000, lost: 100, doubled: 100, ..Rule::default() });
            for number in 0..20_000_u32 {
                bench.send(&number.to_be_bytes());
            }
            let waits = bench.lanes.waiting.len() as u64;
            assert!(waits <= WAITING_MAX + 200 && bench.counts().full > 3_000, "{waits}");
            bench.wait(Duration::from_secs(120));
            (bench.counts(), bench.numbers())
        };
        assert!(run() == run());
    }
}
