//! Faults of the network: which directions of which pairs, and what happens there.
//!
//! The shapes are those that broke real systems: an isolated leader, halves, a bridge (two sides that only see a third),
//! one-way routes, majorities that differ for everyone, and lines that are slow, narrow or break.
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
}

/// The directions that a shape hits, of nodes in an order of chance, with the rule for them and a name for people.
pub(super) fn plan(
    shape: Shape,
    nodes: &[usize],
    leader: Option<usize>,
    chance: &mut StdRng,
) -> (String, Vec<(usize, usize)>, Rule) {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Who sees whom, itself included.
    fn sees(shape: Shape, count: usize) -> Vec<Vec<usize>> {
        let nodes: Vec<usize> = (0..count).collect();
        let (_, cut, _) = plan(shape, &nodes, Some(1), &mut StdRng::seed_from_u64(1));
        let seen = |node: &usize| nodes.iter().copied().filter(|other| !cut.contains(&(*other, *node))).collect();
        nodes.iter().map(seen).collect()
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
