//! Sealer: decides when a window of a tenant in a partition has ended.
//!
//! Why not by the node's clock: age is relative to the tenant's own newest sample, so that old data can be loaded. A
//! window is due when the newest sample is past its end by what may still come late, and half a window for those who
//! are slow; or when nobody has written for long, because nothing will then move it on. Samples that come after the
//! seal are kept all the same and wait for the next seal of the same window; so that each straggler does not become a
//! block of its own, one window is sealed at most once in the time of a window.
//!
//! Whatever is decided here is only proposed: the metadata counts the seals, and two nodes that see the same window
//! due cannot both seal it with one number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engram_model::block::Seals;
use engram_model::error::Class;
use engram_model::place::PartitionId;
use engram_model::tenant::TenantId;
use engram_model::time::Clock;
use engram_model::{Millis, TimeRange};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::heads;
use super::reach::Reach;
use crate::actor::{ChildError, ChildSpec, RestartLimit};
use crate::error::Error;
use crate::meta::Meta;
use crate::metrics::Reading;
use crate::peer::{HeldWindows, Peers};

/// How long one command may take.
const PROPOSE_WITHIN: Duration = Duration::from_secs(10);
/// Windows of one tenant in one partition that are sealed in one pass; the rest is for the next.
const SEALS_AT_ONCE_MAX: usize = 32;

/// When a window is due, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Length of a window.
    pub window_ms: i64,
    /// How long after its end, besides what the tenant may send late.
    pub delay_ms: i64,
    /// Longest wait for late samples: a tenant may be allowed to send years late, its heads need not wait for it.
    pub late_ms_max: i64,
    /// A head without an append for so long is sealed as it is; 0: never.
    pub idle_ms: i64,
}

/// What the sealer works with.
#[derive(Clone)]
pub struct Config {
    /// The metadata.
    pub meta: Meta,
    /// The replicas.
    pub peers: Peers,
    /// Whether blocks are made.
    pub reach: Reach,
    /// The node's clock.
    pub clock: Clock,
    /// When a window is due.
    pub rules: Rules,
    /// How often to look.
    pub every: Duration,
    /// What is counted.
    pub counts: Arc<SealCounts>,
    /// Ends the actor.
    pub stop: CancellationToken,
}

/// What was sealed.
#[derive(Debug, Default)]
pub struct SealCounts {
    seals: AtomicU64,
    failures: AtomicU64,
}

impl SealCounts {
    /// For the node's telemetry.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "numbers for a graph")]
    pub fn readings(&self) -> Vec<Reading> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        vec![
            Reading::counter("blocks_seals", "Windows this node has sealed", get(&self.seals)),
            Reading::counter("blocks_seal_failures", "Seals that were not agreed; tried again", get(&self.failures)),
        ]
    }
}

/// The child that seals.
#[must_use]
pub fn child(config: Config) -> ChildSpec {
    ChildSpec {
        name: "sealer".to_owned(),
        limit: RestartLimit::default(),
        essential: false,
        start: Box::new(move || run(config.clone()).boxed()),
    }
}

/// When this process sealed a window last.
#[derive(Debug, Default)]
struct Sealed(HashMap<(TenantId, PartitionId, Millis), Millis>);

impl Sealed {
    fn recently(&self, key: (&TenantId, PartitionId), window: TimeRange, now: Millis, within_ms: i64) -> bool {
        let at = self.0.get(&(key.0.clone(), key.1, window.start));
        at.is_some_and(|at| now.saturating_sub(*at) < within_ms)
    }

    fn forget(&mut self, now: Millis, within_ms: i64) {
        self.0.retain(|_, at| now.saturating_sub(*at) < within_ms);
    }
}

async fn run(config: Config) -> Result<(), ChildError> {
    let mut sealed = Sealed::default();
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(config.every) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
        tokio::select! {
            biased;
            () = pass(&config, &mut sealed) => {}
            () = config.stop.cancelled() => return Ok(()),
        }
    }
}

/// Looks at every partition of which this node is the first replica that can be reached.
async fn pass(config: &Config, sealed: &mut Sealed) {
    sealed.forget(config.clock.now(), config.rules.window_ms);
    if !config.reach.makes_blocks() {
        return;
    }
    let (ring, me) = (config.meta.ring(), config.meta.node_id());
    // One look at all replicas for each partition: what one of them alone has is sealed too.
    for partition in (0..ring.partition_count()).map(PartitionId) {
        let Some(set) = ring.replicas(partition) else { continue };
        let first = set.replicas.iter().find(|node| config.meta.is_active(**node));
        if first == Some(&me)
            && let Err(error) = partition_pass(config, sealed, partition).await
        {
            config.counts.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(partition = partition.0, %error, "windows are sealed later");
        }
    }
}

async fn partition_pass(config: &Config, sealed: &mut Sealed, partition: PartitionId) -> Result<(), Error> {
    let mut by_tenant = BTreeMap::<TenantId, Vec<HeldWindows>>::new();
    for held in heads::windows(&config.meta, &config.peers, partition).await?.into_iter().flatten() {
        by_tenant.entry(held.tenant.clone()).or_default().push(held);
    }
    for (tenant, held) in by_tenant {
        match seal_tenant(config, sealed, (&tenant, partition), held).await {
            Ok(()) => {}
            // Without a quorum the others fare no better.
            Err(error) if matches!(error.class, Class::Unavailable | Class::Timeout) => return Err(error),
            // One tenant that cannot be sealed must not hold up those after it.
            Err(error) => {
                config.counts.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%tenant, partition = partition.0, %error, "windows of a tenant are sealed later");
            }
        }
    }
    Ok(())
}

async fn seal_tenant(
    config: &Config,
    sealed: &mut Sealed,
    (tenant, partition): (&TenantId, PartitionId),
    held: Vec<HeldWindows>,
) -> Result<(), Error> {
    let seals = config.meta.seals(tenant, partition);
    let late_ms = config.meta.tenant(tenant).limits.out_of_order_time_window_ms;
    let now = config.clock.now();
    let window_ms = config.rules.window_ms;
    let recently = |window| sealed.recently((tenant, partition), window, now, window_ms);
    let windows = due_anywhere(held, seals.as_deref(), late_ms, now, &config.rules, recently);
    let numbers = seals.map_or(1, |seals| seals.next)..;
    for (number, window) in numbers.zip(windows.into_iter().take(SEALS_AT_ONCE_MAX)) {
        // None: somebody else was faster, the next pass sees what is left.
        let Some(_) = config.meta.seal_as(tenant, partition, number, window, PROPOSE_WITHIN).await? else { break };
        sealed.0.insert((tenant.clone(), partition, window.start), now);
        config.counts.seals.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The windows that have ended by what all replicas know of one tenant, and that one of them has, oldest first.
fn due_anywhere(
    mut replicas: Vec<HeldWindows>,
    seals: Option<&Seals>,
    late_ms: i64,
    now: Millis,
    rules: &Rules,
    recently: impl Fn(TimeRange) -> bool,
) -> Vec<TimeRange> {
    let newest = replicas.iter().filter_map(|held| held.newest).max();
    let appended_at = replicas.iter().map(|held| held.appended_at).max().unwrap_or(now);
    let mut windows = Vec::new();
    for held in &mut replicas {
        (held.newest, held.appended_at) = (newest, appended_at);
        windows.extend(due(held, seals, late_ms, now, rules, &recently));
    }
    windows.sort_unstable_by_key(|window| (window.start, window.end));
    windows.dedup();
    windows
}

/// The windows that have ended, oldest first.
fn due(
    held: &HeldWindows,
    seals: Option<&Seals>,
    late_ms: i64,
    now: Millis,
    rules: &Rules,
    recently: impl Fn(TimeRange) -> bool,
) -> Vec<TimeRange> {
    let is_idle = rules.idle_ms > 0 && now.saturating_sub(held.appended_at) >= rules.idle_ms;
    let wait_ms = late_ms.min(rules.late_ms_max).saturating_add(rules.delay_ms);
    let has_ended = |window: TimeRange| {
        held.newest.is_some_and(|newest| newest >= window.end.saturating_add(wait_ms)) && !recently(window)
    };
    // A seal that this replica has not applied yet takes what is there now.
    let is_coming = |window: TimeRange| {
        let open = seals.map(|seals| seals.open.as_slice()).unwrap_or_default();
        open.iter().any(|seal| seal.number > held.sealed && seal.window == window)
    };
    let live = held.live.iter().filter(|(_, samples)| *samples > 0).map(|(window, _)| *window);
    live.filter(|window| (is_idle || has_ended(*window)) && !is_coming(*window)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::block::Seal;

    const H: i64 = 3_600_000;
    const RULES: Rules = Rules { window_ms: 2 * H, delay_ms: H, late_ms_max: 12 * H, idle_ms: 3 * H };

    fn window(n: i64) -> TimeRange {
        TimeRange { start: n * 2 * H, end: (n + 1) * 2 * H }
    }

    fn held(newest: i64, windows: &[i64]) -> HeldWindows {
        HeldWindows {
            tenant: TenantId::anonymous(),
            newest: Some(newest),
            appended_at: 0,
            sealed: 0,
            live: windows.iter().map(|n| (window(*n), 1)).collect(),
        }
    }

    fn due_at(held: &HeldWindows, late_ms: i64, now: i64) -> Vec<TimeRange> {
        due(held, None, late_ms, now, &RULES, |_| false)
    }

    #[test]
    fn a_window_ends_half_a_window_after_its_end_by_the_tenants_own_time() {
        assert!(due_at(&held(3 * H - 1, &[0, 1]), 0, 0).is_empty());
        assert_eq!(due_at(&held(3 * H, &[0, 1]), 0, 0), [window(0)]);
        assert_eq!(due_at(&held(5 * H, &[0, 1, 2]), 0, 0), [window(0), window(1)]);
        assert!(due_at(&held(5 * H, &[0, 1, 2]), 5 * H, 0).is_empty(), "late samples may come for five hours");
        assert_eq!(due_at(&held(15 * H, &[0, 1, 2]), 1_000 * H, 0), [window(0)], "nobody waits for ever");
        assert!(due_at(&HeldWindows { live: vec![(window(0), 0)], ..held(9 * H, &[]) }, 0, 0).is_empty());
    }

    #[test]
    fn a_window_that_only_one_replica_has_is_sealed_too() {
        let all = vec![held(5 * H, &[1, 2]), held(3 * H, &[0, 2])];
        assert_eq!(due_anywhere(all, None, 0, 0, &RULES, |_| false), [window(0), window(1)]);
        let written = HeldWindows { appended_at: H, ..held(H, &[]) };
        let all = vec![held(H, &[0]), written];
        assert!(due_anywhere(all.clone(), None, 0, 4 * H - 1, &RULES, |_| false).is_empty());
        assert_eq!(due_anywhere(all, None, 0, 4 * H, &RULES, |_| false), [window(0)]);
    }

    #[test]
    fn an_idle_head_is_sealed_as_it_is() {
        assert!(due_at(&held(H, &[0]), 0, 3 * H - 1).is_empty());
        assert_eq!(due_at(&held(H, &[0]), 9 * H, 3 * H), [window(0)]);
        let never = Rules { idle_ms: 0, ..RULES };
        assert!(due(&held(H, &[0]), None, 0, 1_000 * H, &never, |_| false).is_empty());
    }

    #[test]
    fn what_is_sealed_is_not_sealed_again() {
        let open = |number| Seal { number, window: window(0), cut: None, forgotten_by: Vec::new() };
        let seals = Seals { next: 2, open: vec![open(1)] };
        let one = held(5 * H, &[0]);
        assert!(due(&one, Some(&seals), 0, 0, &RULES, |_| false).is_empty(), "not applied here yet");
        let applied = HeldWindows { sealed: 1, ..one };
        assert_eq!(due(&applied, Some(&seals), 0, 0, &RULES, |_| false), [window(0)], "what came after it");
        assert!(due(&applied, Some(&seals), 0, 0, &RULES, |_| true).is_empty(), "stragglers wait for each other");
    }

    #[test]
    fn a_window_sealed_lately_waits_for_its_time() {
        let mut sealed = Sealed::default();
        let tenant = TenantId::anonymous();
        sealed.0.insert((tenant.clone(), PartitionId(3), 0), 100);
        assert!(sealed.recently((&tenant, PartitionId(3)), window(0), 199, 100));
        assert!(!sealed.recently((&tenant, PartitionId(3)), window(1), 199, 100));
        sealed.forget(200, 100);
        assert!(!sealed.recently((&tenant, PartitionId(3)), window(0), 200, 100));
    }
}
