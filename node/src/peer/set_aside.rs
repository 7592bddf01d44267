//! What a replica has set aside for a seal, on its way to who cuts it.
//!
//! Why bit by bit: it is as large as a tenant writes in a window, which nothing bounds. A part that had to be held whole,
//! here or there, would sooner or later be one that can never be cut. So its digests come first, as the promise that all
//! of it is held against in the end, and then its series in order of labels, a frame at a time and no faster than they
//! are taken. Who stops taking ends it; what breaks off is an error, never an end.

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::digest::Digest;
use engram_model::error::Class;
use engram_model::series::Series;
use engram_model::{Millis, TimeRange};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::Streaming;

use super::Frozen;
use super::remote::Mark;
use super::wire::proto::Frame;
use super::wire::{failed, frozen, series};
use crate::error::Error;
use crate::tls::told;

/// See the module's text.
pub struct SetAside {
    /// The seal's number.
    pub number: u64,
    /// Its window; every sample lies inside.
    pub window: TimeRange,
    /// The digest of each slot that holds samples.
    pub digests: BTreeMap<Millis, Digest>,
    /// The series in order of labels, some at a time.
    pub series: BoxStream<'static, Result<Vec<Series>, Error>>,
}

impl From<Frozen> for SetAside {
    fn from(whole: Frozen) -> Self {
        let Frozen { number, window, digests, series } = whole;
        Self { number, window, digests, series: stream::iter([Ok(series)]).boxed() }
    }
}

/// A part that another node hands over.
pub(super) struct Arriving {
    frames: Streaming<Frame>,
    /// Which node, for errors.
    name: String,
    mark: Arc<Mark>,
}

impl Arriving {
    pub(super) fn new(frames: Streaming<Frame>, name: String, mark: Arc<Mark>) -> Self {
        Self { frames, name, mark }
    }

    /// Waits for the promise; none when the node has forgotten the part.
    pub(super) async fn promised(mut self) -> Result<Option<SetAside>, Error> {
        let Some(first) = self.next().await? else { return Err(self.damaged(&"it promises nothing")) };
        if first.kind != frozen::PROMISE {
            return Err(self.damaged(&format!("it begins with a frame of kind {}", first.kind)));
        }
        let promise = frozen::read_promise(&first.body).map_err(|e| self.damaged(&e))?;
        let Some(frozen::Promise { number, window, digests }) = promise else { return Ok(None) };
        let series = stream::try_unfold(self, Self::some).boxed();
        Ok(Some(SetAside { number, window, digests, series }))
    }

    async fn some(mut self) -> Result<Option<(Vec<Series>, Self)>, Error> {
        let Some(frame) = self.next().await? else { return Ok(None) };
        if frame.kind != frozen::SERIES {
            return Err(self.damaged(&format!("a frame of kind {}", frame.kind)));
        }
        let mut some = Vec::new();
        series::read_series(&frame.body, &mut some).map_err(|e| self.damaged(&e))?;
        Ok(Some((some, self)))
    }

    async fn next(&mut self) -> Result<Option<Frame>, Error> {
        let frame = self.frames.message().await.map_err(|status| {
            self.mark.failed();
            Error::unavailable(format!("{}: {}", self.name, told(&status)))
        })?;
        self.mark.answered();
        match frame {
            Some(Frame { failure: Some(failure), .. }) => Err(failed(failure)),
            frame => Ok(frame),
        }
    }

    fn damaged(&self, what: &dyn std::fmt::Display) -> Error {
        Error::new(Class::Internal, format!("{}: what it has set aside: {what}", self.name))
    }
}
