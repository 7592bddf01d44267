//! Remote read: raw samples for another Prometheus, and for `engram export`.
//!
//! Two forms of the answer. *Samples*: one message, which is compressed as a whole and so stands in memory as a whole;
//! what it may hold is bounded as a query's samples are. *Chunks*: a stream of frames, made as the client takes them:
//! no more than one series for some days is decoded at a time, whatever was asked for.
//!
//! Either way a read waits for its turn with the queries, and holds its place until the answer has been taken. The
//! order of series is that of their labels, as in a block; of each the samples of all replicas and blocks are one.
//!
//! Map: [`request`] what is asked for · [`samples`](mod@samples), [`frames`] the two forms · [`wire`] protobuf.

pub mod frames;
pub mod request;
pub mod wire;

mod samples;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engram_model::error::Class;
use engram_model::series::{Columns, Series, Wanted};
use engram_model::tenant::TenantId;
use engram_model::time::Stopwatch;
use engram_model::{Millis, TimeRange};
use engram_query::engine::SamplePool;
use engram_storage::chunk;
use engram_storage::head::HeadOptions;
use futures::FutureExt;

use super::Reader;
use super::queue::Place;
use super::select::View;
use crate::error::{Error, Stage};
use crate::peer::too_many_series;
use request::{Form, Query, Request};

/// Largest sampled answer before compression. A larger one must be streamed.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A piece of the stream is handed over when it is at least so long.
const PIECE_BYTES: usize = 128 << 10;
/// A series is decoded for so long a time at once: two megabytes of it at a sample every ten seconds.
const SLICE_MS: i64 = 14 * 24 * 3600 * 1000;
/// Of ranges longer than so many slices, slices are longer.
const SLICES_MAX: i64 = 512;
/// Samples lie before this (in 2248) and after 1970, all but a few: what is outside is read as one slice.
const USUAL_UNTIL: Millis = 1 << 43;
/// A stream may take so many times as long as a query: its client decides how fast it goes.
const STREAM_TIMES: u32 = 30;

/// What is answered.
pub enum Answer {
    /// The whole message, compressed.
    Samples(Bytes),
    /// Frames, made as they are taken.
    Chunks(Pieces),
}

/// The rest of a streamed answer. Dropping it ends the read.
pub struct Pieces {
    /// By query, in order of labels; the next one last.
    rest: Vec<(u64, TimeRange, Series)>,
    /// The series that is being sent, and from when.
    open: Option<(u64, TimeRange, Series)>,
    window_ms: i64,
    watch: Stopwatch,
    within: Duration,
    _place: Place,
}

/// Samples that stand in memory, told to the pool of the node.
struct Held {
    pool: Arc<SamplePool>,
    samples: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.give(self.samples);
    }
}

/// The series of all queries, each with its range, in order of labels.
async fn find(view: &View, queries: &[Query], max: u64) -> Result<Vec<(TimeRange, Vec<Series>)>, Error> {
    let (mut found, mut count) = (Vec::with_capacity(queries.len()), 0);
    for query in queries {
        let mut series = match query.range.is_empty() {
            true => Vec::new(),
            false => view.samples(&query.matchers, query.range, Wanted::default()).await?,
        };
        count += series.len() as u64;
        if max > 0 && count > max {
            return Err(too_many_series(view.tenant(), count, max));
        }
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        found.push((query.range, series));
    }
    Ok(found)
}

impl Reader {
    /// Reads raw samples.
    ///
    /// # Errors
    /// Limited for a full queue or too many series, Invalid for a range that is too long or more samples than one
    /// answer may hold, Timeout, Unavailable when data cannot be read.
    ///
    /// # Cancel safety
    /// Dropping the future, or the answer, ends the read.
    pub async fn remote_read(&self, tenant: &TenantId, request: Request) -> Result<Answer, Error> {
        let (watch, timeout) = (Stopwatch::start(), self.0.options.timeout);
        let late = |_| Error::new(Class::Timeout, "remote read took longer than query.timeout");
        tokio::time::timeout(timeout, self.remote(tenant, request, watch)).await.map_err(late)?
    }

    async fn remote(&self, tenant: &TenantId, request: Request, watch: Stopwatch) -> Result<Answer, Error> {
        let limits = self.0.meta.tenant(tenant).limits;
        for query in &request.queries {
            check_length(tenant, query, limits.max_query_length_ms)?;
        }
        let place = self.0.queue.enter(tenant).await?;
        let (asked, max) = (Arc::new(request.queries), limits.max_fetched_series_per_query);
        let found = self.fresh(tenant, move |view| {
            let asked = asked.clone();
            async move { find(&view, &asked, max).await }.boxed()
        });
        let found = found.await?;
        match request.form {
            Form::Chunks => {
                let mut rest: Vec<_> = (0_u64..)
                    .zip(found)
                    .flat_map(|(i, (range, all))| all.into_iter().map(move |series| (i, range, series)))
                    .collect();
                rest.reverse();
                let window_ms = HeadOptions::default().window_ms;
                let within = self.0.options.timeout * STREAM_TIMES;
                Ok(Answer::Chunks(Pieces { rest, open: None, window_ms, watch, within, _place: place }))
            }
            Form::Samples => {
                let samples_max = limits.max_samples_per_query.min(self.0.options.samples_max);
                let held = Held { pool: self.0.options.pool.clone(), samples: 0 };
                let work = engram_storage::blocking::blocking(move || {
                    let answer = whole(found, samples_max, held);
                    drop(place);
                    answer
                });
                let failed = |e| Error::new(Class::Internal, format!("remote read failed: {e}"));
                Ok(Answer::Samples(work.await.map_err(failed)??))
            }
        }
    }
}

fn check_length(tenant: &TenantId, query: &Query, max: i64) -> Result<(), Error> {
    let length = query.range.end.saturating_sub(query.range.start);
    if max > 0 && length > max {
        return Err(Error::invalid(format!(
            "tenant {tenant}: the read spans {length} ms, limit max_query_length_ms is {max}: take a shorter range"
        )));
    }
    Ok(())
}

/// The sampled answer, compressed.
fn whole(found: Vec<(TimeRange, Vec<Series>)>, samples_max: u64, mut held: Held) -> Result<Bytes, Error> {
    let too_much = |what: String| Error { stage: Stage::Execution, ..Error::invalid(what) };
    let (mut body, mut columns) = (Vec::new(), Columns::default());
    for (range, all) in found {
        let mut result = Vec::new();
        for series in all {
            columns.clear();
            read(&series, range, &mut columns)?;
            if columns.is_empty() {
                continue;
            }
            held.samples += columns.len() as u64;
            held.pool.take(columns.len() as u64)?;
            if held.samples > samples_max {
                return Err(too_much(format!(
                    "the remote read holds more than {samples_max} samples, limit max_samples_per_query: ask for \
                     less, or accept STREAMED_XOR_CHUNKS, which has no such limit"
                )));
            }
            samples::put_series(&mut result, &series.labels, &columns);
            if body.len() + result.len() > ANSWER_BYTES_MAX {
                return Err(too_much(format!(
                    "the answer to the remote read is larger than {ANSWER_BYTES_MAX} bytes: ask for less, or accept \
                     STREAMED_XOR_CHUNKS, which has no such limit"
                )));
            }
        }
        wire::put_bytes(&mut body, 1, &result);
    }
    let compressed = snap::raw::Encoder::new().compress_vec(&body);
    compressed.map(Bytes::from).map_err(|e| Error::new(Class::Internal, format!("compressing the answer: {e}")))
}

/// The samples of the range and no others: a source may give whole chunks. `columns` are empty before.
fn read(series: &Series, range: TimeRange, columns: &mut Columns) -> Result<(), Error> {
    series.source.read(range, columns).map_err(|e| Error::new(Class::Internal, e.to_string()))?;
    cut(&mut columns.times, &mut columns.values, range);
    cut(&mut columns.histogram_times, &mut columns.histograms, range);
    // Remote read has no words for start timestamps.
    columns.starts.clear();
    columns.histogram_starts.clear();
    Ok(())
}

fn cut<T>(times: &mut Vec<Millis>, values: &mut Vec<T>, range: TimeRange) {
    let until = times.partition_point(|at| *at < range.end);
    let from = times.partition_point(|at| *at < range.start).min(until);
    values.truncate(until);
    values.drain(..from);
    times.truncate(until);
    times.drain(..from);
}

/// Where the first slice of a range ends.
fn slice_end(range: TimeRange) -> Millis {
    let usual = range.end.min(USUAL_UNTIL).saturating_sub(range.start.max(0));
    let end = match range.start {
        before if before < 0 => 0,
        start if start < USUAL_UNTIL && usual > SLICE_MS * SLICES_MAX => start + USUAL_UNTIL / SLICES_MAX,
        start if start < USUAL_UNTIL => start + SLICE_MS,
        _ => range.end,
    };
    end.min(range.end)
}

impl Pieces {
    /// The next piece with what is left after it; none at the end.
    ///
    /// # Errors
    /// Timeout after a multiple of the time a query has, Internal for a chunk that does not decode. The stream must be
    /// broken off then: a client that saw its end would take it for whole.
    pub async fn next_piece(mut self) -> Result<Option<(Bytes, Self)>, Error> {
        if self.watch.elapsed() > self.within {
            let text = format!(
                "a remote read was not taken within {} s, {STREAM_TIMES} times query.timeout",
                self.within.as_secs()
            );
            return Err(Error::new(Class::Timeout, text));
        }
        let failed = |e| Error::new(Class::Internal, format!("remote read failed: {e}"));
        let work = engram_storage::blocking::blocking(move || {
            let mut out = Vec::with_capacity(PIECE_BYTES + frames::FRAME_BYTES_MAX);
            while out.len() < PIECE_BYTES && self.put_next(&mut out)? {}
            Ok((!out.is_empty()).then(|| (Bytes::from(out), self)))
        });
        work.await.map_err(failed)?
    }

    /// Appends the frames of one series for one slice of time; says whether there was one.
    fn put_next(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        let Some((query, range, series)) = self.open.take().or_else(|| self.rest.pop()) else { return Ok(false) };
        let middle = slice_end(range);
        let mut columns = Columns::default();
        read(&series, TimeRange::new(range.start, middle), &mut columns)?;
        let chunks = chunk::encode(chunk::in_order(&columns), self.window_ms);
        frames::put_frames(out, query, &series.labels, &chunks);
        if middle < range.end {
            self.open = Some((query, TimeRange::new(middle, range.end), series));
        }
        Ok(true)
    }
}
