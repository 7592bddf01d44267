//! Faults of the network: which directions of which pairs, and what happens there.
//!
//! The shapes are those that broke real systems: an isolated leader, halves, a bridge (two sides that only see a third),
//! one-way routes, majorities that differ for everyone, and lines that are slow, narrow or break. Where nodes' packets are in
//! our hands, also some that are lost, come twice, in another order, or with bits turned.
//!
//! Source: Alquraan et al., "An Analysis of Network-Partitioning Failures in Cloud Systems" (OSDI 2018); Alfatafta et
//! al., "Toward a Generic Fault Tolerance Technique for Partial Network Partitioning" (OSDI 2020); Jepsen `nemesis.clj`.

use super::CUT;
use crate::cluster::{CLIENTS, Rule, between};
use rand::RngExt;
use rand::rngs::StdRng;

/// What happens to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One node alone.
    IsolateNode,
    /// The leader of the metadata group alone.
    IsolateLeader,
    /// Every node alone.
    Shatter,
    /// Two sides as equal as can be.
    Halves,
    /// Two sides that see one node in the middle, but not each other.
    Bridge,
    /// Everybody sees a majority, nobody the same one as another.
    Ring,
    /// What one node sends to the others does not arrive; what they send does.
    OneWay,
    /// Every line is late by so many milliseconds, and by up to as much again.
    Slow(u64),
    /// Connections break again and again.
    Lossy,
    /// The lines to one node carry so many bytes a second.
    Narrow(u64),
    /// Of ten thousand pieces of answers to clients so many end their connection instead: what was asked was done.
    LostAnswers(u32),
    /// Clients reach one node only, and that one no other.
    CutClients,
    /// A share of packets is lost each way: of one node, in every second round of all.
    Loss,
    /// Shares of packets come twice, and after later ones.
    Disorder,
    /// Bits of a share of packets are turned, also of those between clients and nodes.
    Rot,
}

impl Shape {
    /// Whether only packets can be treated like this.
    pub(crate) fn needs_packets(self) -> bool {
        matches!(self, Self::CutClients | Self::Loss | Self::Disorder | Self::Rot)
    }
}

/// The directions that a shape hits, of nodes in an order of chance, with the rule for them and a name for people.
pub(super) fn plan(
    shape: Shape,
    nodes: &[usize],
    (leader, round): (Option<usize>, u32),
    chance: &mut StdRng,
) -> (String, Vec<(usize, usize)>, Rule) {
    if shape.needs_packets() {
        return packets(shape, nodes, round, chance);
    }
    let one = nodes.first().copied().unwrap_or(0);
    let rest = |one: usize| nodes.iter().copied().filter(|node| *node != one).collect::<Vec<_>>();
    let all = || between(&nodes.iter().map(|node| vec![*node]).collect::<Vec<_>>());
    match shape {
        Shape::IsolateNode => (format!("node {one} alone"), between(&[vec![one], rest(one)]), CUT),
        Shape::IsolateLeader => {
            let leader = leader.unwrap_or(one);
            (format!("leader {leader} alone"), between(&[vec![leader], rest(leader)]), CUT)
        }
        Shape::Shatter => ("every node alone".to_owned(), all(), CUT),
        Shape::Halves => {
            let (left, right) = nodes.split_at(nodes.len() / 2);
            (format!("{left:?} without {right:?}"), between(&[left.to_vec(), right.to_vec()]), CUT)
        }
        Shape::Bridge => {
            let sides = rest(one);
            let (left, right) = sides.split_at(sides.len() / 2);
            let name = format!("{left:?} and {right:?} see only node {one}");
            (name, between(&[left.to_vec(), right.to_vec()]), CUT)
        }
        Shape::Ring => {
            // In a circle each sees its neighbours; of five nodes that is itself and two: a majority.
            let near = (nodes.len() / 2).div_ceil(2);
            let far = |a: usize, b: usize| a.abs_diff(b).min(nodes.len() - a.abs_diff(b)) > near;
            let pairs = (0..nodes.len()).flat_map(|a| (0..nodes.len()).map(move |b| (a, b)));
            let pairs = pairs.filter(|(a, b)| far(*a, *b)).map(|(a, b)| (nodes[a], nodes[b])).collect();
            (format!("a ring of majorities {nodes:?}"), pairs, CUT)
        }
        Shape::OneWay => {
            let from = if chance.random_bool(0.5) { leader.unwrap_or(one) } else { one };
            let pairs = rest(from).into_iter().map(|to| (from, to)).collect();
            (format!("node {from} hears and is not heard"), pairs, CUT)
        }
        Shape::Slow(delay_ms) => {
            let rule = Rule { delay_ms, jitter_ms: delay_ms, ..Rule::default() };
            (format!("every line late by {delay_ms} to {} ms", 2 * delay_ms), all(), rule)
        }
        Shape::Lossy => {
            let breaks = chance.random_range(20..=200);
            (
                format!("{} % of pieces end their connection", f64::from(breaks) / 100.0),
                all(),
                Rule { breaks, ..Rule::default() },
            )
        }
        Shape::LostAnswers(breaks) => {
            let pairs = nodes.iter().map(|node| (*node, CLIENTS)).collect();
            let name = format!("{} % of answers to clients are lost", f64::from(breaks) / 100.0);
            (name, pairs, Rule { breaks, ..Rule::default() })
        }
        Shape::Narrow(bytes_per_second) => {
            let pairs = between(&[vec![one], rest(one)]);
            (
                format!("{bytes_per_second} B/s to and from node {one}"),
                pairs,
                Rule { bytes_per_second, ..Rule::default() },
            )
        }
        Shape::CutClients | Shape::Loss | Shape::Disorder | Shape::Rot => unreachable!("planned before"),
    }
}

/// As [`plan`], for what only packets can have.
fn packets(shape: Shape, nodes: &[usize], round: u32, chance: &mut StdRng) -> (String, Vec<(usize, usize)>, Rule) {
    let one = nodes.first().copied().unwrap_or(0);
    let rest: Vec<usize> = nodes.iter().copied().filter(|node| *node != one).collect();
    let all = || between(&nodes.iter().map(|node| vec![*node]).collect::<Vec<_>>());
    let clients = |nodes: &[usize]| between(&[vec![CLIENTS], nodes.to_vec()]);
    let percent = |of_10_000: u32| f64::from(of_10_000) / 100.0;
    match shape {
        Shape::CutClients => {
            let pairs = [between(&[vec![one], rest.clone()]), clients(&rest)].concat();
            (format!("clients reach only node {one}, which reaches no other"), pairs, CUT)
        }
        Shape::Loss => {
            let lost = chance.random_range(500..=2_000);
            let (whose, pairs) = match round % 2 {
                0 => (format!("to and from node {one}"), between(&[vec![one], rest])),
                _ => ("between all nodes".to_owned(), all()),
            };
            (format!("{} % of packets {whose} are lost", percent(lost)), pairs, Rule { lost, ..Rule::OPEN })
        }
        Shape::Disorder => {
            let (doubled, overtaken) = (chance.random_range(500..=3_000), chance.random_range(500..=3_000));
            let (twice, late) = (percent(doubled), percent(overtaken));
            let name = format!("{twice} % of packets between nodes come twice, {late} % are overtaken");
            (name, all(), Rule { doubled, overtaken, ..Rule::OPEN })
        }
        _ => {
            let turned = chance.random_range(100..=500);
            let name = format!("bits of {} % of packets are turned, clients' too", percent(turned));
            (name, [all(), clients(nodes)].concat(), Rule { turned, ..Rule::OPEN })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Who sees whom, itself included.
    fn sees(shape: Shape, count: usize) -> Vec<Vec<usize>> {
        let nodes: Vec<usize> = (0..count).collect();
        let (_, cut, _) = plan(shape, &nodes, (Some(1), 0), &mut StdRng::seed_from_u64(1));
        let seen = |node: &usize| nodes.iter().copied().filter(|other| !cut.contains(&(*other, *node))).collect();
        nodes.iter().map(seen).collect()
    }

    #[test]
    fn packets_are_hit_between_nodes_and_clients_only_where_it_is_said() {
        let plan = |shape, round| plan(shape, &[2, 0, 1], (None, round), &mut StdRng::seed_from_u64(1));
        let (_, cut, rule) = plan(Shape::CutClients, 0);
        assert!(rule == CUT && cut.contains(&(CLIENTS, 0)) && cut.contains(&(1, CLIENTS)) && cut.contains(&(2, 0)));
        assert!(!cut.contains(&(CLIENTS, 2)) && !cut.contains(&(2, CLIENTS)) && !cut.contains(&(0, 1)));
        let (_, one, rule) = plan(Shape::Loss, 0);
        assert!(one.len() == 4 && !one.contains(&(0, 1)) && (500..=2_000).contains(&rule.lost));
        assert_eq!(
            [plan(Shape::Loss, 1).1.len(), plan(Shape::Disorder, 0).1.len(), plan(Shape::Rot, 0).1.len()],
            [6, 6, 12]
        );
    }

    #[test]
    fn shapes_cut_what_they_say() {
        assert_eq!(sees(Shape::IsolateLeader, 3), [vec![0, 2], vec![1], vec![0, 2]]);
        assert_eq!(sees(Shape::Shatter, 3), [vec![0], vec![1], vec![2]]);
        assert_eq!(sees(Shape::Bridge, 3), [vec![0, 1, 2], vec![0, 1], vec![0, 2]]);
        assert_eq!(sees(Shape::Halves, 4), [vec![0, 1], vec![0, 1], vec![2, 3], vec![2, 3]]);
        let ring = sees(Shape::Ring, 5);
        assert_eq!(ring[0], [0, 1, 4]);
        for (at, majority) in ring.iter().enumerate() {
            assert!(majority.len() == 3 && ring.iter().skip(at + 1).all(|other| other != majority), "{ring:?}");
        }
        let one_way = sees(Shape::OneWay, 3);
        assert_eq!(
            one_way.iter().filter(|seen| seen.len() == 3).count(),
            1,
            "only the one that is not heard hears all"
        );
    }
}
