//! Names without samples: the label sets, names and values of a tenant's series, from heads and blocks.
//!
//! Where something of the range is deleted, a series counts only when it has something left: then samples are looked at.

use std::collections::BTreeSet;

use engram_model::error::Class;
use engram_model::series::{Columns, Series, Wanted};
use engram_model::{Labels, Matcher, Millis, TimeRange};
use futures::future::try_join_all;

use super::super::hide::{Hider, covers};
use super::{Bounds, View, damaged};
use crate::error::Error;

impl View {
    /// Label sets of blocks and, where something is hidden, of heads too: of series that have something left.
    async fn labels(&self, matchers: &[Matcher], range: TimeRange, hider: &Hider) -> Result<Vec<Labels>, Error> {
        let mut all = Vec::new();
        for selected in self.found(matchers, range, 0).await? {
            let hider = hider.after(selected.row().meta.as_of);
            for series in &selected.found {
                let mut hidden = hider.ranges(&series.labels);
                let deleted = selected.deleted(series).iter();
                hidden.extend(deleted.map(|(first, last)| TimeRange::new(*first, last.saturating_add(1))));
                let shown = |first: Millis, last: Millis| {
                    let inside = TimeRange::new(first.max(range.start), last.saturating_add(1).min(range.end));
                    !covers(&hidden, inside)
                };
                if hidden.is_empty() || series.chunks.iter().any(|chunk| shown(chunk.first, chunk.last)) {
                    all.push(series.labels.clone());
                }
            }
        }
        if !hider.is_empty() {
            let bounds = Bounds { series_max: self.bounds().series_max, ..Bounds::default() };
            let heads = self.read_heads(matchers, range, Wanted::default(), bounds).await?;
            all.extend(blocking_filter(heads.into_iter().flatten().collect(), hider.clone(), range).await?);
        }
        Ok(all)
    }

    /// Label sets of the series any of `selectors` selects; sorted.
    ///
    /// # Errors
    /// Unavailable when a partition or a block cannot be read, or this view is too old.
    pub async fn series(&self, selectors: &[Vec<Matcher>], range: TimeRange) -> Result<Vec<Labels>, Error> {
        let hider = Hider::new(&self.look.deletions, range)?;
        let mut all = BTreeSet::new();
        for matchers in selectors {
            if hider.is_empty() {
                let parts = self.ask(matchers, range, self.look.index, |replica, request| replica.series(request));
                all.extend(parts.await?.into_iter().flatten());
            }
            all.extend(self.labels(matchers, range, &hider).await?);
        }
        Ok(all.into_iter().collect())
    }

    /// Names of labels of the series any of `selectors` selects (none given: of all series).
    ///
    /// # Errors
    /// Unavailable when a partition or a block cannot be read, or this view is too old.
    pub async fn label_names(&self, selectors: &[Vec<Matcher>], range: TimeRange) -> Result<BTreeSet<String>, Error> {
        let hider = Hider::new(&self.look.deletions, range)?;
        let mut all = BTreeSet::new();
        for matchers in or_everything(selectors) {
            if hider.is_empty() {
                let parts =
                    self.ask(&matchers, range, self.look.index, |replica, request| replica.label_names(request));
                all.extend(parts.await?.into_iter().flatten());
            }
            if hider.is_empty() && matchers.is_empty() {
                let rows = self.look.blocks.iter().filter(|row| row.meta.range.overlaps(range));
                let names = rows.map(|row| self.blocks.label_names(row, &self.cost));
                all.extend(try_join_all(names).await?.into_iter().flatten());
                continue;
            }
            for labels in self.labels(&matchers, range, &hider).await? {
                for (name, _) in labels.iter() {
                    if !all.contains(name) {
                        all.insert(name.to_owned());
                    }
                }
            }
        }
        Ok(all)
    }

    /// Values of one label, as [`View::label_names`].
    ///
    /// # Errors
    /// Unavailable when a partition or a block cannot be read, or this view is too old.
    pub async fn label_values(
        &self,
        name: &str,
        selectors: &[Vec<Matcher>],
        range: TimeRange,
    ) -> Result<BTreeSet<String>, Error> {
        let hider = Hider::new(&self.look.deletions, range)?;
        let mut all = BTreeSet::new();
        for matchers in or_everything(selectors) {
            if hider.is_empty() {
                let parts = self.ask(&matchers, range, self.look.index, |replica, request| {
                    replica.label_values(request, name.to_owned())
                });
                all.extend(parts.await?.into_iter().flatten());
            }
            if hider.is_empty() && matchers.is_empty() {
                let rows = self.look.blocks.iter().filter(|row| row.meta.range.overlaps(range));
                let values = rows.map(|row| self.blocks.label_values(row, name, &self.cost));
                all.extend(try_join_all(values).await?.into_iter().flatten());
                continue;
            }
            for labels in self.labels(&matchers, range, &hider).await? {
                if let Some(value) = labels.get(name)
                    && !all.contains(value)
                {
                    all.insert(value.to_owned());
                }
            }
        }
        Ok(all)
    }
}

/// Those of the series of heads that have samples in `range` which are not hidden.
async fn blocking_filter(series: Vec<Series>, hider: Hider, range: TimeRange) -> Result<Vec<Labels>, Error> {
    let filter = move || {
        let mut left = Vec::new();
        for series in series {
            if !hider.ranges(&series.labels).is_empty() {
                let mut columns = Columns::default();
                hider.hide(series.clone()).source.read(range, &mut columns).map_err(|e| damaged(&e))?;
                let mut times = columns.times.iter().chain(&columns.histogram_times);
                if !times.any(|at| range.contains(*at)) {
                    continue;
                }
            }
            left.push(series.labels);
        }
        Ok(left)
    };
    let filtered = engram_storage::blocking::blocking(filter).await;
    filtered.map_err(|e| Error::new(Class::Internal, format!("reading samples failed: {e}")))?
}

fn or_everything(selectors: &[Vec<Matcher>]) -> Vec<Vec<Matcher>> {
    if selectors.is_empty() { vec![Vec::new()] } else { selectors.to_vec() }
}
