//! Hands what was set aside for a seal to who cuts it.
//!
//! Encoded as fast as it is taken: a thread fills one frame, and waits while the channel is full. A cut takes minutes, and
//! so may this; so there are places, and who finds none asks again.

use std::sync::Arc;

use engram_model::error::Class;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::Error;
use crate::peer::wire::frozen::{Frames, PROMISE, SERIES, put_promise};
use crate::peer::wire::proto::{AskRequest, Frame};
use crate::peer::wire::{self, failure};
use crate::peer::{Replica, SetAside};

/// Parts that are handed over at once: each holds the labels of its series, and a thread.
const HANDING_MAX: usize = 16;

/// Places for those who take parts. Cheap to clone.
#[derive(Clone)]
pub(super) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(HANDING_MAX)))
    }
}

/// A part, with its place.
pub(super) struct Handing {
    part: Option<SetAside>,
    _place: OwnedSemaphorePermit,
}

impl Places {
    /// What the request asks for, if there is a place.
    pub(super) async fn take(&self, local: &dyn Replica, request: AskRequest) -> Result<Handing, Error> {
        let full = |_| Error::unavailable(format!("{HANDING_MAX} parts are handed over already, retry later"));
        let place = self.0.clone().try_acquire_owned().map_err(full)?;
        let select = wire::read_select(&request)?;
        let part = local.set_aside(&select.tenant, select.partition, request.max).await?;
        Ok(Handing { part, _place: place })
    }
}

impl Handing {
    /// Sends all of it; stops when nobody reads any more.
    pub(super) fn send(self, frame_bytes: usize, tx: &mpsc::Sender<Frame>) {
        if let Err(error) = self.sent(frame_bytes, tx) {
            let _gone = tx.blocking_send(Frame { failure: Some(failure(&error)), ..Frame::default() });
        }
    }

    fn sent(self, frame_bytes: usize, tx: &mpsc::Sender<Frame>) -> Result<(), Error> {
        let is_gone = |kind, body: Vec<u8>| {
            let frame = Frame { kind, body: body.into(), ..Frame::default() };
            tx.blocking_send(frame).is_err()
        };
        let promise = put_promise(self.part.as_ref());
        let (false, Some(mut part)) = (is_gone(PROMISE, promise), self.part) else { return Ok(()) };
        let mut frames = Frames::new(part.window, frame_bytes);
        while let Some(some) = futures::executor::block_on(part.series.next()) {
            for series in some? {
                let full = frames.put(&series).map_err(|e| Error::new(Class::Internal, e.to_string()))?;
                if full.is_some_and(|frame| is_gone(SERIES, frame)) {
                    return Ok(());
                }
            }
        }
        if let Some(rest) = frames.rest() {
            is_gone(SERIES, rest);
        }
        Ok(())
    }
}
