//! Sums in place of series: which partitions are summed up where, for how many steps.
//!
//! ```text
//! digests of a majority ─┬─ of this node, or replicas differ early: series, as always
//!                        └─ replicas agree on the first steps ─┬─ one replica sums those up ── declined: series
//!                                                              └─ series for the other steps
//! ```
//! Why this is complete: the digests come first. A replica whose digest of a slot is that of a majority has, and keeps,
//! all of that slot that was acknowledged before; what it reads later has it. A slot in which they differ, mostly the
//! one that is being written, is merged from several, and so are all steps that look at it or at what follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engram_model::Millis;
use engram_model::place::{NodeId, PartitionId};
use engram_model::series::Series;
use engram_query::fragment::{Fragment, Partial};
use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};

use super::{Fanout, Part, differing, may_pass_over};
use crate::error::Error;
use crate::meta::RingView;
use crate::peer::{Select, SlotDigests, Summed, Summing};

/// Who has not summed up for so long gets a rival: the series are read.
const RIVAL_AFTER: Duration = Duration::from_secs(5);

/// Series of partitions.
type Places = Vec<(PartitionId, Vec<Series>)>;

/// What sums and series came, of all partitions.
#[derive(Default)]
pub struct Gathered {
    /// Partitions of which the series came.
    pub series: Places,
    /// The others, for the steps after those of the partials.
    pub late: Places,
    /// The sums of the others, all of the same number of steps.
    pub partials: Vec<Partial>,
    /// Why some of them had to be read after all.
    pub declined: Option<&'static str>,
}

/// Who is to sum up what.
struct Division {
    /// How many of the first steps.
    steps: usize,
    by_node: BTreeMap<NodeId, Vec<Part>>,
    /// What is to be read.
    rest: Vec<Part>,
}

/// What came of one node.
enum Came {
    Sum(Partial, Places),
    Series(Places, &'static str),
}

impl Fanout {
    /// Sums of what other nodes have, and series. A word says why nothing can be summed up: then nothing was read.
    ///
    /// # Errors
    /// As [`Fanout::select`].
    pub async fn gather(
        &self,
        ring: &Arc<RingView>,
        requests: &[Select],
        summing: &Summing,
    ) -> Result<Result<Gathered, &'static str>, Error> {
        self.looking_again(ring, requests, |parts| self.gather_once(parts, summing)).await
    }

    async fn gather_once(&self, parts: Vec<Part>, summing: &Summing) -> Result<Result<Gathered, &'static str>, Error> {
        let here = self.peers.here();
        let (near, far): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(|part| part.order.first() == Some(&here));
        if far.is_empty() {
            return Ok(Err("local"));
        }
        let digests = self.digests_of_majority(&far).await?;
        let Division { steps, by_node, mut rest } = divide(&summing.fragment, far, &digests, here);
        if by_node.is_empty() {
            return Ok(Err("differs"));
        }
        rest.extend(near);
        let sums = by_node.into_iter().map(|(node, parts)| self.sum_at(node, parts, summing, steps));
        let (series, sums) = futures::future::try_join(self.places(&rest), futures::future::try_join_all(sums)).await?;
        let mut gathered = Gathered { series, ..Gathered::default() };
        for came in sums {
            match came {
                Came::Sum(partial, late) => {
                    gathered.partials.push(partial);
                    gathered.late.extend(late);
                }
                Came::Series(series, why) => {
                    gathered.series.extend(series);
                    gathered.declined = Some(why);
                }
            }
        }
        Ok(Ok(gathered))
    }

    /// The series of some partitions, complete.
    fn places<'a>(&'a self, parts: &'a [Part]) -> BoxFuture<'a, Result<Places, Error>> {
        async move {
            if parts.is_empty() {
                return Ok(Vec::new());
            }
            let series = self.select_parts(parts).await?;
            Ok(parts.iter().map(|part| part.select.partition).zip(series).collect())
        }
        .boxed()
    }

    /// What one node sums up, with the series for the later steps; or the series.
    async fn sum_at(&self, node: NodeId, parts: Vec<Part>, summing: &Summing, steps: usize) -> Result<Came, Error> {
        let mut asked = std::pin::pin!(self.ask_sum(node, &parts, summing, steps).fuse());
        let summed = match tokio::time::timeout(RIVAL_AFTER, asked.as_mut()).await {
            Ok(done) => done,
            Err(_) => match select(asked, self.places(&parts)).await {
                Either::Left((done, _)) => done,
                Either::Right((Ok(series), _)) => return Ok(Came::Series(series, "slow")),
                Either::Right((Err(_), asked)) => asked.await,
            },
        };
        match summed {
            Ok((Summed::Done(partial), late)) => Ok(Came::Sum(partial, late)),
            Ok((Summed::Declined(why), _)) => self.read_instead(&parts, why).await,
            Err(error) if may_pass_over(&error) => self.read_instead(&parts, "failed").await,
            Err(error) => Err(error),
        }
    }

    async fn read_instead(&self, parts: &[Part], why: &'static str) -> Result<Came, Error> {
        Ok(Came::Series(self.places(parts).await?, why))
    }

    async fn ask_sum(
        &self,
        node: NodeId,
        parts: &[Part],
        summing: &Summing,
        steps: usize,
    ) -> Result<(Summed, Places), Error> {
        let fragment = &summing.fragment;
        let (first, later) = (Arc::new(fragment.first(steps)), fragment.range_from(steps));
        // Of the whole range: series that begin later are counted and looked at, too.
        let selects: Vec<Select> = parts.iter().map(|part| part.select.clone()).collect();
        let summing = Summing { fragment: first, ..summing.clone() };
        let replica = self.replica(node, &selects)?;
        let summed = async {
            let summed = self.still(node, &selects, replica.sum_up(selects.clone(), summing).await)?;
            match &summed {
                Summed::Done(partial) if partial.steps != steps => Ok(Summed::Declined("failed")),
                _ => Ok(summed),
            }
        };
        if steps == fragment.steps {
            return Ok((summed.await?, Vec::new()));
        }
        let of = |part: &Part| Part { select: Select { range: later, ..part.select.clone() }, ..part.clone() };
        let later: Vec<Part> = parts.iter().map(of).collect();
        futures::future::try_join(summed, self.places(&later)).await
    }
}

/// Divides partitions by who sums them up. The ones whose replicas differ in what the first half of the steps looks at are
/// read: they would hold back the others.
fn divide(fragment: &Fragment, far: Vec<Part>, digests: &[Vec<(NodeId, SlotDigests)>], here: NodeId) -> Division {
    let mut division = Division { steps: fragment.steps, by_node: BTreeMap::new(), rest: Vec::new() };
    for (part, digests) in far.into_iter().zip(digests) {
        let is_fit = |node: &NodeId| {
            let answered = digests.iter().any(|(have, _)| have == node);
            *node != here && answered && part.sets.current().contains(node)
        };
        let found = part.order.iter().copied().find(is_fit);
        let Some(node) = found else {
            division.rest.push(part);
            continue;
        };
        let steps = differs_at(&part.select, node, digests).map_or(fragment.steps, |at| fragment.steps_before(at));
        if steps == 0 || steps < fragment.steps / 2 {
            division.rest.push(part);
            continue;
        }
        division.steps = division.steps.min(steps);
        division.by_node.entry(node).or_default().push(part);
    }
    division
}

/// The first time at which a replica may lack what another one has.
fn differs_at(select: &Select, node: NodeId, digests: &[(NodeId, SlotDigests)]) -> Option<Millis> {
    let own = digests.iter().find(|(have, _)| *have == node).map(|(_, own)| own)?;
    differing(select, (node, own), digests).into_iter().map(|(_, range)| range.start).min()
}

#[cfg(test)]
mod tests {
    use engram_model::TimeRange;
    use engram_model::digest::{Digest, SLOT_MS};
    use engram_model::place::{Epoch, Sets};
    use engram_model::tenant::TenantId;
    use engram_query::fragment::Rules;
    use engram_query::parse::ast::{AggregateOp, Span};

    use super::*;

    fn fragment(steps: usize) -> Fragment {
        Fragment {
            op: AggregateOp::Sum,
            grouping: Vec::new(),
            without: false,
            func: Some("rate"),
            params: Vec::new(),
            range_ms: SLOT_MS,
            matchers: Vec::new(),
            offset_ms: 0,
            at: None,
            start: SLOT_MS,
            step_ms: SLOT_MS / 5,
            steps,
            rules: Rules {
                lookback_ms: SLOT_MS,
                samples_max: 1,
                bytes_max: 0,
                within_ms: 1,
                delayed_name_removal: false,
                type_and_unit_labels: false,
            },
            span: Span::default(),
        }
    }

    fn part(partition: u32, nodes: &[u64], range: TimeRange) -> Part {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let select = Select {
            tenant: TenantId::anonymous(),
            partition: PartitionId(partition),
            epoch: Epoch(1),
            range,
            matchers: Arc::default(),
            series_max: 0,
            wanted: Arc::default(),
            as_of: u64::MAX,
        };
        Part { select, sets: Sets::new(&nodes, None), order: nodes, without: Vec::new() }
    }

    /// Digests of the slots from 0 on.
    fn digests(all: &[u64]) -> SlotDigests {
        let of = |n: &u64| Digest { count: *n, low: n * 7, high: n * 11 };
        (0..).map(|slot: i64| slot * SLOT_MS).zip(all.iter().map(of)).collect()
    }

    #[test]
    fn steps_that_look_at_a_slot_that_differs_are_not_summed_up() {
        // Twenty steps over the slots 0 to 4.
        let fragment = fragment(20);
        let range = fragment.range_from(0);
        let far = vec![part(0, &[2, 3], range), part(1, &[2, 3], range), part(2, &[3, 4], range), part(3, &[9], range)];
        let same = digests(&[1, 2, 3, 4, 5]);
        let all = [
            vec![(NodeId(3), same.clone()), (NodeId(2), same.clone())],
            // In slot 3 the other one has more: steps up to the end of slot 2 stay.
            vec![(NodeId(2), same.clone()), (NodeId(3), digests(&[1, 2, 3, 9, 5]))],
            // In slot 1 already.
            vec![(NodeId(3), same.clone()), (NodeId(4), digests(&[1, 9, 3, 4, 5]))],
            vec![(NodeId(9), same.clone())],
        ];
        let division = divide(&fragment, far, &all, NodeId(9));
        // The steps are at slot 1 + 0.2 * n; those before slot 3 look at nothing of it.
        assert_eq!(division.steps, 10);
        assert!((0..10).all(|step| fragment.data_time(step) < 3 * SLOT_MS) && fragment.data_time(10) == 3 * SLOT_MS);
        let of = |parts: &[Part]| parts.iter().map(|part| part.select.partition.0).collect::<Vec<_>>();
        let by_node: Vec<_> = division.by_node.iter().map(|(node, parts)| (node.0, of(parts))).collect();
        assert_eq!(by_node, [(2, vec![0, 1])]);
        assert_eq!(of(&division.rest), [2, 3]);
    }

    #[test]
    fn who_has_more_than_the_others_sums_up_all_steps() {
        let fragment = fragment(20);
        let own = digests(&[1, 2, 3, 4, 5]);
        let far = || vec![part(0, &[2, 3, 4], fragment.range_from(0))];
        let less = vec![(NodeId(2), own.clone()), (NodeId(3), digests(&[1, 2, 3, 4]))];
        assert_eq!(divide(&fragment, far(), &[less], NodeId(1)).steps, 20);
        // The nearest one has not answered; the next one has.
        let without = vec![(NodeId(4), own.clone()), (NodeId(3), own)];
        let division = divide(&fragment, far(), &[without], NodeId(1));
        assert_eq!(division.by_node.keys().collect::<Vec<_>>(), [&NodeId(3)]);
    }
}
