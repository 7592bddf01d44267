//! What the network between two nodes does at the moment: one rule for each direction.
//!
//! A cut holds bytes back as a lost route does: nothing is refused, nothing arrives, and when the route is back TCP
//! delivers what was sent. Whoever waits finds out by its own deadlines only, which is the point.

use rand::RngExt;
use rand::rngs::StdRng;
use std::time::Duration;
use tokio::sync::watch;

/// Stands for all clients where rules say who sends to whom.
pub(crate) const CLIENTS: usize = 63;
/// Stands for the object store of ours; only packets tell it apart.
pub(crate) const STORE: usize = 62;
/// Stands for the harness itself, which asks and steers; only packets tell it apart, and no rule is for it.
pub(crate) const HANDS: usize = 61;

/// What happens to bytes on their way from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Nothing passes.
    pub(crate) cut: bool,
    /// Each piece is late by so much, and by up to `jitter_ms` more.
    pub(crate) delay_ms: u64,
    pub(crate) jitter_ms: u64,
    /// Of 10,000 pieces so many end their connection.
    pub(crate) breaks: u32,
    /// Bytes a second; 0: no bound.
    pub(crate) bytes_per_second: u64,
    /// Of 10,000 packets so many never arrive, arrive twice, arrive after later ones, arrive with bits turned.
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    pub(crate) overtaken: u32,
    pub(crate) turned: u32,
}

impl Rule {
    /// Everything passes.
    pub(crate) const OPEN: Self = Self {
        cut: false,
        delay_ms: 0,
        jitter_ms: 0,
        breaks: 0,
        bytes_per_second: 0,
        lost: 0,
        doubled: 0,
        overtaken: 0,
        turned: 0,
    };

    /// How late one piece of `bytes` is.
    pub(crate) fn delay(&self, chance: &mut StdRng) -> Duration {
        let jitter_ms = if self.jitter_ms == 0 { 0 } else { chance.random_range(0..=self.jitter_ms) };
        Duration::from_millis(self.delay_ms + jitter_ms)
    }

    /// How long `bytes` occupy the line.
    pub(crate) fn occupies(&self, bytes: usize) -> Duration {
        let micros = (bytes as u64 * 1_000_000).checked_div(self.bytes_per_second).unwrap_or(0);
        Duration::from_micros(micros)
    }

    /// Whether this piece ends its connection.
    pub(crate) fn breaks(&self, chance: &mut StdRng) -> bool {
        self.breaks > 0 && chance.random_range(0..10_000) < self.breaks
    }
}

/// The rules of all pairs; `rules[from][to]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules(Vec<Vec<Rule>>);

impl Rules {
    /// The rule for what goes from one node to another; open for nodes nobody has spoken of.
    pub(crate) fn rule(&self, from: usize, to: usize) -> Rule {
        self.0.get(from).and_then(|row| row.get(to)).copied().unwrap_or_default()
    }

    /// Whether everything passes everywhere.
    pub(crate) fn is_open(&self) -> bool {
        self.0.iter().flatten().all(|rule| *rule == Rule::default())
    }

    fn set(&mut self, from: usize, to: usize, rule: Rule) {
        if self.0.len() <= from {
            self.0.resize(from + 1, Vec::new());
        }
        if self.0[from].len() <= to {
            self.0[from].resize(to + 1, Rule::default());
        }
        self.0[from][to] = rule;
    }
}

/// The network's state, as whoever breaks it holds it.
#[derive(Debug)]
pub(crate) struct Links(watch::Sender<Rules>);

impl Links {
    /// A network in which everything passes.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Rules::default()))
    }

    /// For those who carry bytes.
    pub(crate) fn watch(&self) -> watch::Receiver<Rules> {
        self.0.subscribe()
    }

    /// Sets the rule of each pair, at once.
    pub(crate) fn set(&self, pairs: &[(usize, usize)], rule: Rule) {
        self.0.send_modify(|rules| pairs.iter().for_each(|(from, to)| rules.set(*from, *to, rule)));
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        self.0.send_replace(Rules::default());
    }
}

/// Both directions between each two nodes of different groups.
pub(crate) fn between(groups: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for (at, group) in groups.iter().enumerate() {
        for other in groups.iter().skip(at + 1).flatten() {
            pairs.extend(group.iter().flat_map(|one| [(*one, *other), (*other, *one)]));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_between_groups_leaves_the_groups_whole() {
        let links = Links::new();
        let cut = Rule { cut: true, ..Rule::default() };
        links.set(&between(&[vec![0], vec![1, 2]]), cut);
        let rules = links.watch().borrow().clone();
        assert!(rules.rule(0, 1).cut && rules.rule(1, 0).cut && rules.rule(2, 0).cut);
        assert!(!rules.rule(1, 2).cut && !rules.rule(2, 1).cut && !rules.rule(0, 9).cut);
        assert!(!rules.is_open());
        links.heal();
        assert!(links.watch().borrow().is_open());
    }

    #[test]
    fn a_slow_line_is_occupied_by_what_it_carries() {
        let rule = Rule { bytes_per_second: 125_000, ..Rule::default() };
        assert_eq!(rule.occupies(12_500), Duration::from_millis(100));
        assert_eq!(Rule::default().occupies(12_500), Duration::ZERO);
    }
}
