//! Reads one view of several partitions from their replicas: quorum consistency at the price of one read.
//!
//! ```text
//! nearest replica ── digests, then series ──┐
//! the others ─────── digests ───────────────┤ equal: complete · different: the other's samples of those slots, merged
//! ```
//! Why this is complete: a sample that was acknowledged before the query began is on a majority, so at least one
//! replica of the majority that is asked here has it. If that one's digest of the slot equals the nearest replica's,
//! which was taken before its series were read, the nearest one had the sample too. If not, its slot is fetched.
//!
//! While a set is being replaced a majority of the next one is asked, too, because one of them knows when the change is
//! over. What those have that only come is not read: all that was acknowledged is on a majority of the present set, and
//! what a replica that only comes has beside that is gone from every query if the change is taken back.
//!
//! A replica that fails is passed over as long as a majority answers; one that takes long gets a rival, whatever it was asked. A replica set
//! that has changed meanwhile is looked up again, together with the blocks of a reader that has any: a new replica does
//! not know what the old ones forgot. Nothing is ever left out silently.

mod pushed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use engram_model::digest::{Digest, SLOT_MS};
use engram_model::error::Class;
use engram_model::merge::join_series;
use engram_model::place::{Epoch, NodeId, PartitionId, Sets};
use engram_model::series::Series;
use engram_model::{Millis, TimeRange};
use futures::future::{BoxFuture, Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;

use crate::error::{Error, Stage};
use crate::meta::{Meta, RingView};
use crate::peer::{Found, Peers, Replica, Select, SlotDigests};

pub use pushed::Gathered;

/// A replica on another node that has not answered for this long gets a rival.
const HEDGE_AFTER: Duration = Duration::from_millis(500);
/// How often a changing ring is looked at again in one read.
const LOOKS_MAX: usize = 5;
/// How often a read is begun again because a replica failed in its middle.
const TRIES_MAX: usize = 3;
/// How long the metadata may take to show what a replica knows already.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);
/// Ranges of slots fetched apart; more are fetched as one.
const RANGES_MAX: usize = 8;

/// Parts of the request to ask more of, by replica.
type More = BTreeMap<NodeId, Vec<(usize, Select)>>;
/// What came of that, by part.
type Extra = BTreeMap<usize, Vec<Vec<Series>>>;
/// What a replica gave for a part of the request.
type Fetched = Vec<(usize, NodeId, Found)>;

/// What to read of one partition, and who has it.
#[derive(Clone)]
struct Part {
    select: Select,
    sets: Sets,
    /// Who to ask for the series, the best first.
    order: Vec<NodeId>,
    /// Who is asked nothing: it did not answer just now.
    without: Vec<NodeId>,
}

impl Part {
    /// The same without some nodes, if the others may be a majority.
    fn without(&self, nodes: &[NodeId]) -> Option<Self> {
        let mut part = self.clone();
        part.without.extend_from_slice(nodes);
        part.order.retain(|node| !nodes.contains(node));
        (!part.sets.cannot_have_majority(&part.without)).then_some(part)
    }
}

/// Reads through the replicas that the ring names. Cheap to clone.
#[derive(Clone)]
pub struct Fanout {
    meta: Meta,
    peers: Peers,
}

impl Fanout {
    /// Over the given metadata and peers.
    #[must_use]
    pub fn new(meta: &Meta, peers: &Peers) -> Self {
        Self { meta: meta.clone(), peers: peers.clone() }
    }

    fn part(&self, ring: &RingView, select: &Select) -> Result<Part, Error> {
        let partition = select.partition;
        let set = ring.replicas(partition).filter(|set| !set.replicas.is_empty()).ok_or_else(|| {
            Error::unavailable(format!("partition {} has no replicas: the node is still starting", partition.0))
        })?;
        let sets = Sets::new(&set.replicas, ring.next(partition));
        let order = self.peers.nearest(sets.current());
        Ok(Part { select: Select { epoch: set.epoch, ..select.clone() }, sets, order, without: Vec::new() })
    }

    /// The series of each request, complete, and unordered.
    ///
    /// # Errors
    /// Unavailable when some partition has no majority that answers, Limited when one has too many series.
    pub async fn select(&self, ring: &Arc<RingView>, requests: &[Select]) -> Result<Vec<Vec<Series>>, Error> {
        self.looking_again(ring, requests, |parts| async move { self.select_parts(&parts).await }).await
    }

    async fn select_parts(&self, parts: &[Part]) -> Result<Vec<Vec<Series>>, Error> {
        let mut tries = 1;
        loop {
            match self.select_once(parts).await {
                // A replica that failed in the middle is known to be ill now; the others may be a majority.
                Err(error) if may_pass_over(&error) && tries < TRIES_MAX => tries += 1,
                done => return done,
            }
        }
    }

    /// Repeats a read as long as replica sets change under it; one that has a view of blocks as well needs a new one.
    async fn looking_again<T, F: Future<Output = Result<T, Error>>>(
        &self,
        ring: &Arc<RingView>,
        requests: &[Select],
        read: impl Fn(Vec<Part>) -> F,
    ) -> Result<T, Error> {
        let mut ring = ring.clone();
        let mut looks = 0;
        loop {
            let parts: Vec<Part> = requests.iter().map(|one| self.part(&ring, one)).collect::<Result<_, _>>()?;
            let used: Vec<(PartitionId, Epoch)> = parts.iter().map(|p| (p.select.partition, p.select.epoch)).collect();
            let error = match read(parts).await {
                Err(error) if error.stage == Stage::Stale => error,
                done => return done,
            };
            looks += 1;
            if looks >= LOOKS_MAX {
                return Err(Error::unavailable(error.message));
            }
            // Whichever of them it was: one has changed, and the metadata is about to show it here.
            let newer = used.iter().map(|(partition, epoch)| {
                self.meta.epoch_reached(*partition, Epoch(epoch.0.saturating_add(1)), CATCH_UP_WITHIN).boxed()
            });
            let _late = futures::future::select_all(newer).await;
            if let Some(one) = requests.iter().find(|one| one.as_of != u64::MAX) {
                // New replicas have no marks of what was forgotten before they came: with the old blocks it would be
                // in neither.
                return Err(Error::stale_view(one.as_of, self.meta.applied()));
            }
            ring = self.meta.ring();
        }
    }

    /// Holds this node's own replica against the epochs. Before a read, and after it: what is read while the node leaves
    /// a partition is half of it.
    fn fence(&self, node: NodeId, selects: &[Select]) -> Result<(), Error> {
        if node != self.peers.here() {
            return Ok(());
        }
        selects.iter().try_for_each(|one| self.meta.is_at(one.partition, one.epoch))
    }

    /// The replica on a node. Its answer counts when it passes [`Self::still`].
    fn replica(&self, node: NodeId, selects: &[Select]) -> Result<Arc<dyn Replica>, Error> {
        self.fence(node, selects)?;
        self.peers.replica(node)
    }

    /// An answer of the replica on a node, if its epochs are still the present ones.
    fn still<T>(&self, node: NodeId, selects: &[Select], answer: Result<T, Error>) -> Result<T, Error> {
        let answer = answer?;
        self.fence(node, selects).map(|()| answer)
    }

    async fn select_once(&self, parts: &[Part]) -> Result<Vec<Vec<Series>>, Error> {
        if let Some(only) = the_only_node(parts) {
            let selects: Vec<Select> = parts.iter().map(|part| part.select.clone()).collect();
            let answer = self.replica(only, &selects)?.select_all(selects.clone()).await;
            return self.still(only, &selects, answer);
        }
        let all: Vec<(usize, Part)> = parts.iter().cloned().enumerate().collect();
        let series = self.fetch(all).map(|done| done.map(|all| all.into_iter().map(|(i, n, f)| (i, (n, f))).collect()));
        let (series, digests) = futures::future::try_join(series, self.digests_of_majority(parts)).await?;
        let mut series: BTreeMap<usize, (NodeId, Found)> = series;
        let mut more = More::new();
        for (i, (part, others)) in parts.iter().zip(&digests).enumerate() {
            let Some((from, found)) = series.get(&i) else { unreachable!("part {i} was fetched") };
            for (node, range) in differing(&part.select, (*from, &found.digests), others) {
                more.entry(node).or_default().push((i, Select { range, ..part.select.clone() }));
            }
        }
        let mut extra = match self.more_of(parts, more).await? {
            Either::Left(extra) => extra,
            Either::Right(series) => return Ok(series),
        };
        let joined = (0..parts.len()).map(|i| {
            let first = series.remove(&i).map(|(_, found)| found.series).unwrap_or_default();
            match extra.remove(&i) {
                None => first,
                Some(others) => join_series(std::iter::once(first).chain(others).collect()),
            }
        });
        Ok(joined.collect())
    }

    /// What others have of the slots that differ, by part. Where one of them takes long, and the rest may be a majority,
    /// everything is read again without it: who is first counts.
    async fn more_of(&self, parts: &[Part], more: More) -> Result<Either<Extra, Vec<Vec<Series>>>, Error> {
        let slow: Mutex<BTreeSet<NodeId>> = Mutex::new(more.keys().copied().collect());
        let silent = &slow;
        let fetched = more.into_iter().map(|(node, wanted)| async move {
            let selects: Vec<Select> = wanted.iter().map(|(_, select)| select.clone()).collect();
            let answers = self.replica(node, &selects)?.select_all(selects.clone()).await;
            silent.lock().remove(&node);
            let answers = self.still(node, &selects, answers)?;
            Ok::<_, Error>(wanted.into_iter().map(|(i, _)| i).zip(answers).collect::<Vec<_>>())
        });
        let asked = async {
            let mut extra = Extra::new();
            for (i, series) in futures::future::try_join_all(fetched).await?.into_iter().flatten() {
                extra.entry(i).or_default().push(series);
            }
            Ok::<_, Error>(extra)
        };
        let mut asked = std::pin::pin!(asked);
        if let Ok(done) = tokio::time::timeout(HEDGE_AFTER, asked.as_mut()).await {
            return done.map(Either::Left);
        }
        let slow: Vec<NodeId> = slow.lock().iter().copied().filter(|node| *node != self.peers.here()).collect();
        let others: Option<Vec<Part>> = parts.iter().map(|part| part.without(&slow)).collect();
        let Some(others) = others.filter(|_| !slow.is_empty()) else { return asked.await.map(Either::Left) };
        match select(asked, self.select_again(others)).await {
            Either::Left((Err(error), rival)) if may_pass_over(&error) => rival.await.map(Either::Right),
            Either::Left((done, _)) => done.map(Either::Left),
            Either::Right((Err(error), asked)) if may_pass_over(&error) => asked.await.map(Either::Left),
            Either::Right((done, _)) => done.map(Either::Right),
        }
    }

    fn select_again(&self, parts: Vec<Part>) -> BoxFuture<'_, Result<Vec<Vec<Series>>, Error>> {
        async move { self.select_once(&parts).await }.boxed()
    }

    /// Series and digests of each part from the best replica that answers, with the replica.
    fn fetch(&self, parts: Vec<(usize, Part)>) -> BoxFuture<'_, Result<Fetched, Error>> {
        async move {
            let mut by_node: BTreeMap<NodeId, Vec<(usize, Part)>> = BTreeMap::new();
            for (i, part) in parts {
                let Some(node) = part.order.first().copied() else {
                    let text = format!("partition {}: no replica gives its series", part.select.partition.0);
                    return Err(Error::unavailable(text));
                };
                by_node.entry(node).or_default().push((i, part));
            }
            let fetched = by_node.into_iter().map(|(node, parts)| self.fetch_from(node, parts));
            Ok(futures::future::try_join_all(fetched).await?.into_iter().flatten().collect())
        }
        .boxed()
    }

    async fn fetch_from(&self, node: NodeId, parts: Vec<(usize, Part)>) -> Result<Fetched, Error> {
        let asked = async {
            let selects: Vec<Select> = parts.iter().map(|(_, part)| part.select.clone()).collect();
            let found = self.replica(node, &selects)?.found_all(selects.clone()).await;
            let found = self.still(node, &selects, found)?;
            Ok::<_, Error>(parts.iter().map(|(i, _)| *i).zip(found).map(|(i, f)| (i, node, f)).collect::<Vec<_>>())
        };
        let rest: Vec<(usize, Part)> = parts
            .iter()
            .map(|(i, part)| (*i, Part { order: part.order.iter().skip(1).copied().collect(), ..part.clone() }))
            .collect();
        let others_left = rest.iter().all(|(_, part)| !part.order.is_empty());
        let mut asked = std::pin::pin!(asked);
        let patience = if node == self.peers.here() { Duration::MAX } else { HEDGE_AFTER };
        let first = match tokio::time::timeout(patience, asked.as_mut()).await {
            Ok(done) => done,
            Err(_) if !others_left => asked.await,
            Err(_) => match select(asked, self.fetch(rest)).await {
                Either::Left((Err(error), rival)) if may_pass_over(&error) => return rival.await,
                Either::Left((done, _)) => return done,
                Either::Right((Err(error), asked)) if may_pass_over(&error) => return asked.await,
                Either::Right((done, _)) => return done,
            },
        };
        match first {
            Err(error) if may_pass_over(&error) && others_left => self.fetch(rest).await,
            done => done,
        }
    }

    /// The digests of each part from replicas of the present set, by replica, when so many have answered that they are a
    /// majority of each set.
    async fn digests_of_majority(&self, parts: &[Part]) -> Result<Vec<Vec<(NodeId, SlotDigests)>>, Error> {
        let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (i, part) in parts.iter().enumerate() {
            for node in part.sets.nodes().filter(|node| !part.without.contains(node)) {
                by_node.entry(node).or_default().push(i);
            }
        }
        let mut asked: FuturesUnordered<_> = by_node
            .into_iter()
            .map(|(node, which)| async move {
                let selects: Vec<Select> = which.iter().map(|i| parts[*i].select.clone()).collect();
                let answer = match self.replica(node, &selects) {
                    Ok(replica) => self.still(node, &selects, replica.digests_all(selects.clone()).await),
                    Err(error) => Err(error),
                };
                (node, which, answer)
            })
            .collect();
        let mut have: Vec<Vec<(NodeId, SlotDigests)>> = vec![Vec::new(); parts.len()];
        let (mut without, mut why) = (Vec::new(), Vec::new());
        let is_enough = |have: &[Vec<(NodeId, SlotDigests)>]| {
            parts.iter().zip(have).all(|(part, from)| {
                let nodes: Vec<NodeId> = from.iter().map(|(node, _)| *node).collect();
                part.sets.have_majority(&nodes)
            })
        };
        while !is_enough(&have) {
            match asked.next().await {
                Some((node, which, Ok(answers))) => {
                    for (i, digests) in which.into_iter().zip(answers) {
                        have[i].push((node, digests));
                    }
                }
                Some((_, _, Err(error))) if !may_pass_over(&error) => return Err(error),
                Some((node, which, Err(error))) => {
                    without.push(node);
                    why.push(error.message);
                    if let Some(i) = which.iter().find(|i| parts[**i].sets.cannot_have_majority(&without)) {
                        return Err(no_majority(&parts[*i], &why));
                    }
                }
                None => return Err(Error::unavailable("too few replicas gave their digests")),
            }
        }
        for (part, from) in parts.iter().zip(&mut have) {
            from.retain(|(node, _)| part.sets.current().contains(node));
        }
        Ok(have)
    }

    /// What a majority of the replicas of each request answers, all answers of one request together; those of replicas that
    /// only come count for the majority alone.
    ///
    /// # Errors
    /// Unavailable when some partition has no majority that answers.
    pub async fn ask<T: Send>(
        &self,
        ring: &Arc<RingView>,
        requests: &[Select],
        ask: impl for<'r> Fn(&'r dyn Replica, Select) -> BoxFuture<'r, Result<T, Error>> + Sync,
    ) -> Result<Vec<Vec<T>>, Error> {
        let ask = &ask;
        self.looking_again(ring, requests, |parts| async move {
            futures::future::try_join_all(parts.iter().map(|part| self.ask_part(part, ask))).await
        })
        .await
    }

    async fn ask_part<T: Send>(
        &self,
        part: &Part,
        ask: &(impl for<'r> Fn(&'r dyn Replica, Select) -> BoxFuture<'r, Result<T, Error>> + Sync),
    ) -> Result<Vec<T>, Error> {
        let mut asked: FuturesUnordered<_> = part
            .sets
            .nodes()
            .map(|node| async move {
                let select = std::slice::from_ref(&part.select);
                let answer = match self.replica(node, select) {
                    Ok(replica) => self.still(node, select, ask(replica.as_ref(), part.select.clone()).await),
                    Err(error) => Err(error),
                };
                (node, answer)
            })
            .collect();
        let (mut good, mut bad, mut answers, mut why) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        while let Some((node, answer)) = asked.next().await {
            match answer {
                Ok(answer) => {
                    good.push(node);
                    if part.sets.current().contains(&node) {
                        answers.push(answer);
                    }
                    if part.sets.have_majority(&good) {
                        return Ok(answers);
                    }
                }
                Err(error) if !may_pass_over(&error) => return Err(error),
                Err(error) => {
                    bad.push(node);
                    why.push(error.message);
                    if part.sets.cannot_have_majority(&bad) {
                        break;
                    }
                }
            }
        }
        Err(no_majority(part, &why))
    }
}

/// Whether another replica may be asked instead: it may know better.
fn may_pass_over(error: &Error) -> bool {
    !matches!(error.stage, Stage::Stale | Stage::View)
        && matches!(error.class, Class::Unavailable | Class::Timeout | Class::Internal)
}

fn no_majority(part: &Part, why: &[String]) -> Error {
    Error::unavailable(format!(
        "partition {} has no majority of its {} replicas: {}",
        part.select.partition.0,
        part.sets.nodes().count(),
        why.join("; ")
    ))
}

/// The one node that alone holds all of them.
fn the_only_node(parts: &[Part]) -> Option<NodeId> {
    let mut nodes = parts.iter().flat_map(|part| part.sets.nodes());
    let first = nodes.next()?;
    nodes.all(|node| node == first).then_some(first)
}

/// Whom else to ask for which times: where another's digest of a slot is not that of `have`, and says that there is
/// something. Two others that agree are asked once.
fn differing(
    select: &Select,
    have: (NodeId, &SlotDigests),
    others: &[(NodeId, SlotDigests)],
) -> Vec<(NodeId, TimeRange)> {
    let own: BTreeMap<Millis, Digest> = have.1.iter().copied().collect();
    let mut seen: BTreeSet<(Millis, u64, u64, u64)> = BTreeSet::new();
    let mut wanted = Vec::new();
    for (node, digests) in others.iter().filter(|(node, _)| *node != have.0) {
        let mut ranges: Vec<TimeRange> = Vec::new();
        let mut slots: Vec<_> = digests
            .iter()
            .filter(|(slot, digest)| digest.count > 0 && own.get(slot) != Some(digest))
            .filter(|(slot, digest)| seen.insert((*slot, digest.count, digest.low, digest.high)))
            .map(|(slot, _)| *slot)
            .collect();
        slots.sort_unstable();
        for slot in slots {
            let (start, end) = (slot.max(select.range.start), slot.saturating_add(SLOT_MS).min(select.range.end));
            match ranges.last_mut() {
                Some(last) if last.end >= start => last.end = end,
                _ if start < end => ranges.push(TimeRange { start, end }),
                _ => {}
            }
        }
        if ranges.len() > RANGES_MAX {
            let (start, end) = (ranges[0].start, ranges[ranges.len() - 1].end);
            ranges = vec![TimeRange { start, end }];
        }
        wanted.extend(ranges.into_iter().map(|range| (*node, range)));
    }
    wanted
}

#[cfg(test)]
mod tests;
