//! What shows that a fault did hit. A fault that was installed and met nobody proves nothing: then the run is *unknown*.
//!
//! Each is looked for from outside of what it is done to: what strace wrote, what a node logged since, the time it says it
//! has, whether it is gone. What comes late is waited for, so that a slow machine does not make a good run an unknown one.
//!
//! Killed, stopped and paused nodes, cut lines and a power that is gone need no proof of their own: there the harness does
//! it all itself, and fails when it cannot. Where nodes' packets are in our hands, those that a fault met are counted, by line.

use super::{Before, Wound, clocks};
use crate::cluster::{CLIENTS, Cluster, Counts, Injected, Pair, Rule, Syncs};
use crate::error::Error;
use engram_model::time::Stopwatch;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a fault may stand before something meets it.
pub(super) const HITS_WITHIN: Duration = Duration::from_secs(30);
/// How long a node may go on whose syncs fail. Those that keep nothing of value may fail before one that does.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// In words what shows that the fault hit, or why nobody knows.
pub(super) type Proof = Result<String, String>;

/// What shows that a wound is one. `before`: how much each node had printed when it began.
///
/// # Errors
/// A node that must end went on.
pub(super) async fn proof(cluster: &mut Cluster, wound: &Wound, before: &[usize]) -> Result<Proof, Error> {
    match wound {
        Wound::Syncs { nodes, syncs, held } => {
            let hits = hits(cluster, nodes, held).await;
            if *syncs == Syncs::Fail && hits.is_ok() && cluster.peer().is_none() {
                return ended(cluster, nodes).await.map(|()| hits.map(|hits| format!("{hits}; ended by itself")));
            }
            Ok(hits)
        }
        Wound::Full(nodes) => Ok(full(cluster, nodes, before).await),
        Wound::Clocks { nodes, shift, .. } => Ok(clocks::seen(cluster, nodes, *shift).await),
        Wound::Network { pairs, rule, before } => Ok(packets(cluster, pairs, *rule, before).await),
        Wound::Killed(_) | Wound::Stopped(_) | Wound::Paused(_) | Wound::NoPower(_) => Ok(Ok(String::new())),
    }
}

/// Waits until each thing that a rule does to packets has met one, and turned ones were refused by who got them.
async fn packets(cluster: &Cluster, pairs: &[Pair], rule: Rule, (before, refused): &Before) -> Proof {
    let watch = Stopwatch::start();
    loop {
        // Proxies do it all themselves.
        let Some(now) = cluster.packets() else { return Ok(String::new()) };
        let of = |all: &BTreeMap<Pair, Counts>, pair: &Pair| all.get(pair).copied().unwrap_or_default();
        let since = |pair: &Pair| (*pair, of(&now, pair).since(&of(before, pair)).met(rule));
        let lines: Vec<_> = pairs.iter().map(since).collect();
        let refused = cluster.refused().saturating_sub(*refused);
        let missing = missing(&lines, (rule.turned > 0).then_some(refused));
        if missing.is_none() {
            return Ok(told(&lines, refused));
        }
        if let Some(why) = missing.filter(|_| watch.elapsed() > HITS_WITHIN) {
            return Err(why);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a rule did to the packets of a line.
type Met = (Pair, Vec<(&'static str, u64)>);

/// What a rule should have done to packets, and did not.
fn missing(lines: &[Met], refused: Option<u64>) -> Option<String> {
    let sums = sums(lines);
    let none = sums.iter().find(|(_, count)| **count == 0).map(|(what, _)| format!("no packet was {what}"));
    let none = none.or_else(|| sums.is_empty().then(|| "there is no line".to_owned()));
    none.or_else(|| (refused == Some(0)).then(|| "no node has refused a turned packet".to_owned()))
}

fn sums(lines: &[Met]) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (what, count) in lines.iter().flat_map(|(_, met)| met) {
        *sums.entry(*what).or_insert(0) += count;
    }
    sums
}

/// What a rule did to packets, in all and line by line.
fn told(lines: &[Met], refused: u64) -> String {
    let name = |end: usize| if end == CLIENTS { "clients".to_owned() } else { end.to_string() };
    let line = |what: &str| {
        let of = |met: &[(&str, u64)]| met.iter().find(|(one, _)| *one == what).map_or(0, |(_, count)| *count);
        let each = lines.iter().map(|((from, to), met)| format!("{}→{} {}", name(*from), name(*to), of(met)));
        each.collect::<Vec<_>>().join(", ")
    };
    let sums = sums(lines);
    let each = sums.iter().map(|(what, count)| format!("packets {what}: {count} ({})", line(what)));
    let refused = (refused > 0).then(|| format!("refused by nodes for their sums: {refused}"));
    each.chain(refused).collect::<Vec<_>>().join("; ")
}

/// Waits until strace has changed a call of each of them.
async fn hits(cluster: &mut Cluster, nodes: &[usize], held: &[Injected]) -> Proof {
    let (watch, mut told) = (Stopwatch::start(), Vec::new());
    for (node, injected) in nodes.iter().zip(held) {
        loop {
            let hits = injected.hits();
            if hits > 0 {
                told.push(format!("{hits} calls of node {node} were hit"));
                break;
            }
            // One that has ended calls nothing more.
            if watch.elapsed() > HITS_WITHIN || cluster.alive(*node).is_err() {
                return Err(format!("no call of node {node} was hit"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(told.join("; "))
}

/// Waits until each of them has ended by itself.
///
/// # Errors
/// One goes on.
pub(super) async fn ended(cluster: &mut Cluster, nodes: &[usize]) -> Result<(), Error> {
    let watch = Stopwatch::start();
    for node in nodes {
        while cluster.alive(*node).is_ok() {
            if watch.elapsed() > ENDS_WITHIN {
                let text = format!("node {node} goes on {} s after its syncs fail", ENDS_WITHIN.as_secs());
                return Err(Error::Usage(text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// Waits until each of them has said that its disk is full.
async fn full(cluster: &Cluster, nodes: &[usize], before: &[usize]) -> Proof {
    let watch = Stopwatch::start();
    for node in nodes {
        let since = before.get(*node).copied().unwrap_or(0);
        while !cluster.said(*node, since, "No space left") {
            if watch.elapsed() > HITS_WITHIN {
                return Err(format!("node {node} did not say that its disk is full"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok("each said that its disk is full".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_met_no_packet_proves_nothing() {
        let rule = Rule { lost: 1, doubled: 1, ..Rule::OPEN };
        let line = |pair, counts: Counts| (pair, counts.met(rule));
        let (one, other) = (Counts { lost: 3, ..Counts::default() }, Counts { doubled: 2, ..Counts::default() });
        assert_eq!(missing(&[line((0, 1), one)], None).as_deref(), Some("no packet was doubled"));
        let both = [line((0, 1), one), line((CLIENTS, 0), other)];
        assert_eq!(missing(&both, None), None);
        assert_eq!(told(&both, 0), "packets doubled: 2 (0→1 0, clients→0 2); packets lost: 3 (0→1 3, clients→0 0)");
        assert!(missing(&both, Some(0)).is_some() && missing(&both, Some(1)).is_none() && missing(&[], None).is_some());
    }
}
