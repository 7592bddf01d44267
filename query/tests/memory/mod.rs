//! A store of series in memory, for tests and benches: what matches is the answer, whatever the time range.

use engram_model::series::Series;
use engram_model::{Matcher, TimeRange};
use engram_query::port::{Queryable, SelectHints, Selection, SourceError};
use futures::future::BoxFuture;

/// Series as they were at one moment.
pub(crate) struct Memory(pub(crate) Vec<Series>);

impl Queryable for Memory {
    fn select<'a>(
        &'a self,
        _: TimeRange,
        matchers: &'a [Matcher],
        _: &'a SelectHints,
    ) -> BoxFuture<'a, Result<Selection, SourceError>> {
        let fits = |s: &&Series| matchers.iter().all(|m| m.matches(s.labels.get(&m.name).unwrap_or_default()));
        let series = self.0.iter().filter(fits).cloned().collect();
        Box::pin(async move { Ok(Selection { series, ..Selection::default() }) })
    }
}
