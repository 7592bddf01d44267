//! A select that is for one aggregation only: other nodes sum up what lies with them, the rest is read here.
//!
//! Only where heads alone hold the range and nothing of it is deleted: a series whose samples lie in a block as well must
//! be read together. And only where every series that came lies where the tenant's shard puts it today: since a shard
//! has grown, a series may lie in two partitions, and would be counted twice. Else all is read as if there were no sums.

use std::sync::Arc;

use engram_model::merge::join_series;
use engram_model::place::PartitionId;
use engram_model::series::{Series, Wanted};
use engram_model::{Matcher, TimeRange};
use engram_query::engine::has_kind;
use engram_query::fragment::Fragment;
use engram_query::port::{SORTED_MAX, Selection};

use super::super::fanout::Gathered;
use super::super::sums::Homes;
use super::View;
use crate::error::Error;
use crate::peer::Summing;

impl View {
    /// Series as they are.
    pub(super) async fn plain(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        wanted: Wanted,
    ) -> Result<Selection, Error> {
        let series = self.samples(matchers, range, wanted).await?;
        Ok(Selection { series, ..Selection::default() })
    }

    /// Sums where that is allowed and cheaper, else series.
    pub(super) async fn select_pushed(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        wanted: Wanted,
        fragment: &Arc<Fragment>,
    ) -> Result<Selection, Error> {
        let Some(counted) = &self.pushes else { return self.plain(matchers, range, wanted).await };
        let instead = match self.gather(matchers, range, &wanted, fragment).await? {
            Ok((selection, outcome)) => {
                counted.count(outcome);
                return Ok(selection);
            }
            Err(why) => why,
        };
        counted.count(instead);
        self.plain(matchers, range, wanted).await
    }

    /// What came of sums, with a word for it; or the word for why series must be read.
    async fn gather(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        wanted: &Wanted,
        fragment: &Arc<Fragment>,
    ) -> Result<Result<(Selection, &'static str), &'static str>, Error> {
        if self.look.blocks.iter().any(|row| row.meta.range.overlaps(range)) {
            return Ok(Err("blocks"));
        }
        if self.look.deletions.iter().any(|deletion| deletion.range.overlaps(range)) {
            return Ok(Err("deleted"));
        }
        let asked = (self.bounds().series_max, self.look.index);
        let requests = self.requests(matchers, range, wanted.clone(), asked);
        let summing = Summing { fragment: fragment.clone(), shard_size: self.config.shard_size };
        let gathered = self.noticed(self.fanout.gather(&self.ring, &requests, &summing).await)?;
        let Gathered { series, late, partials, declined } = match gathered {
            Ok(gathered) => gathered,
            Err(why) => return Ok(Err(why)),
        };
        if partials.is_empty() {
            let read = as_read(series, wanted).map(|selection| (selection, declined.unwrap_or("declined")));
            return Ok(read.ok_or("few"));
        }
        let homes = Homes::new(&self.tenant, self.ring.partition_count(), self.config.shard_size);
        let drops = fragment.function().is_some_and(|f| f.drops_name) && !fragment.rules.delayed_name_removal;
        let is_alone = |partition: PartitionId, one: &Series| {
            homes.is_home(one, partition, wanted.labels.is_none()) && !(drops && has_kind(&one.labels))
        };
        let mut places = series.iter().chain(&late);
        if !places.all(|(partition, all)| all.iter().all(|one| is_alone(*partition, one))) {
            return Ok(Err("misplaced"));
        }
        let only = |places: Vec<(PartitionId, Vec<Series>)>| places.into_iter().flat_map(|(_, all)| all).collect();
        let outcome = if declined.is_some() { "partly" } else { "pushed" };
        Ok(Ok((Selection { series: only(series), late: only(late), partials, warnings: Vec::new() }, outcome)))
    }
}

/// Nobody summed up: what came are all series. Few must come sorted, for which all their labels are needed.
fn as_read(series: Vec<(PartitionId, Vec<Series>)>, wanted: &Wanted) -> Option<Selection> {
    let mut series = join_series(series.into_iter().map(|(_, all)| all).collect());
    if series.len() <= SORTED_MAX {
        if wanted.labels.is_some() && series.len() > 1 {
            return None;
        }
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
    }
    Some(Selection { series, ..Selection::default() })
}
