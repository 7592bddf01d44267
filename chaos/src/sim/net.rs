//! The network: messages are late, lost, sent twice, overtake each other, and ways are cut in one direction or both.

use super::world::{Event, World};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How the ways are.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// Messages of a hundred that are lost.
    pub(super) lost: u64,
    /// Requests of a hundred that come twice.
    pub(super) twice: u64,
    /// Milliseconds that most messages take, at most.
    pub(super) delay_ms: u64,
    /// Messages of a hundred that take much longer, and how long at most.
    pub(super) slow: u64,
    pub(super) slow_ms: u64,
}

/// A quiet network.
pub(super) const CALM: Weather = Weather { lost: 0, twice: 0, delay_ms: 3, slow: 0, slow_ms: 0 };

#[derive(Debug)]
struct State {
    weather: Weather,
    /// Ways, from and to, that nothing passes.
    cut: BTreeSet<(usize, usize)>,
}

#[derive(Debug)]
pub(super) struct Net {
    count: usize,
    state: Mutex<State>,
}

impl Net {
    pub(super) fn new(count: usize) -> Self {
        Self { count, state: Mutex::new(State { weather: CALM, cut: BTreeSet::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Cuts the way from one node to another.
    pub(super) fn cut(&self, from: usize, to: usize) {
        self.state().cut.insert((from, to));
    }

    /// Cuts a node off from all others.
    pub(super) fn isolate(&self, node: usize) {
        for other in (0..self.count).filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    pub(super) fn heal(&self) {
        *self.state() = State { weather: CALM, cut: BTreeSet::new() };
    }

    /// Whether anything can pass.
    pub(super) fn is_open(&self, from: usize, to: usize) -> bool {
        from == to || !self.state().cut.contains(&(from, to))
    }

    /// How long a message takes; none when it is lost.
    pub(super) fn pass(&self, world: &World, from: usize, to: usize) -> Option<Duration> {
        if from == to {
            return Some(Duration::ZERO);
        }
        let weather = self.state().weather.clone();
        let way = (from * self.count + to) as u64;
        if !self.is_open(from, to) || world.percent(weather.lost) {
            world.note(Event::Lost, way, 0);
            return None;
        }
        let most = if world.percent(weather.slow) { weather.slow_ms } else { weather.delay_ms };
        let takes = world.millis(1, most.max(1));
        world.note(Event::Sent, way, u64::try_from(takes.as_millis()).unwrap_or(u64::MAX));
        Some(takes)
    }

    /// Whether a request comes twice.
    pub(super) fn doubles(&self, world: &World) -> bool {
        let twice = self.state().weather.twice;
        twice > 0 && world.percent(twice)
    }
}
