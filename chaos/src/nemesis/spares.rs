//! Which faults leave a majority of everything alive: then some operations must succeed while they last.
//!
//! Where it depends on chance, the answer is no: a checker that demands too little is blind in one place, one that
//! demands what cannot be has no worth at all.

use super::{Act, Shape, Whom};

impl Act {
    /// Whether a majority of nodes and zones lives and sees each other while this is done to so many.
    pub(super) fn spares_a_majority(self, nodes: usize, zones: usize) -> bool {
        let of = |whom: Whom| match whom {
            Whom::EachNode | Whom::Leader => nodes > 2,
            Whom::Zone => zones > 2 && 2 * nodes.div_ceil(zones) < nodes,
            Whom::AllZonesButOne | Whom::All => false,
        };
        match self {
            Self::Kill(whom) | Self::Pause(whom) | Self::Restart(whom) | Self::PowerLoss(whom) => of(whom),
            Self::DiskFull(whom) | Self::Syncs(whom, _) | Self::Calls(whom) | Self::HeldSync(whom) => of(whom),
            Self::Damage(whom, _) | Self::LiveDamage(whom, _) | Self::CutShort(whom) => of(whom),
            // Where the replicas of a partition are decides whether anybody sees two of them.
            Self::Network(Shape::Shatter | Shape::Halves | Shape::Ring) => false,
            // The majority lives, and no client reaches it.
            Self::Network(Shape::CutClients) => false,
            Self::Network(_) => nodes > 2,
            // In its later rounds it takes all.
            Self::SyncOnce => false,
            Self::PlantedLie | Self::SlowThenDark | Self::AnyOf(_) | Self::Any => false,
            // A clock that is wrong takes nobody away; the others take one at a time.
            _ => nodes > 2,
        }
    }

    /// Whether what replicas hold is damaged, lost or moved by this.
    pub(crate) fn rebuilds(self) -> bool {
        matches!(
            self,
            Self::Damage(..) | Self::LiveDamage(..) | Self::WipeNode | Self::Churn | Self::ChurnCut | Self::Strand
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_of_nodes_and_of_zones() {
        assert!(Act::Kill(Whom::EachNode).spares_a_majority(3, 3));
        assert!(Act::Kill(Whom::Zone).spares_a_majority(6, 3));
        assert!(!Act::Kill(Whom::Zone).spares_a_majority(4, 3), "two of four nodes may be in one zone");
        assert!(!Act::Kill(Whom::AllZonesButOne).spares_a_majority(3, 3));
        assert!(!Act::PowerLoss(Whom::All).spares_a_majority(3, 3) && !Act::Any.spares_a_majority(3, 3));
        assert!(Act::Network(Shape::Bridge).spares_a_majority(3, 3));
        assert!(!Act::Network(Shape::Halves).spares_a_majority(5, 5));
        assert!(!Act::Kill(Whom::Leader).spares_a_majority(1, 1));
    }
}
