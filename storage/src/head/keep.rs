//! Full chunks leave the heap: into the partition's chunk files, and stay where they are otherwise.
//!
//! Why in two steps: a file is written without the head's lock, in which readers would wait for the disk. The head's
//! one writer takes the full chunks ([`Head::take_full`]), puts them into files ([`keep_full`]), and hands them back
//! ([`Head::put_kept`]); in between nobody changes the head. Nothing that can be asked of a head depends on where its
//! chunks lie.

use std::sync::Arc;

use engram_model::Millis;

use super::series::window_of;
use super::{Head, SeriesRef};
use crate::Error;
use crate::chunk::{Chunk, ChunkFiles};

/// A full chunk of a series that lies on the heap, or that has been put into a file.
#[derive(Clone, Debug)]
pub struct FullChunk {
    /// Of which series.
    pub series: SeriesRef,
    /// The start of its window.
    pub window: Millis,
    /// The chunk.
    pub chunk: Chunk,
}

/// Series whose full chunks may lie on the heap, and how many bytes these are, about. The partition's files know the
/// sum over all heads.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    files: Option<Arc<ChunkFiles>>,
    series: Vec<u32>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn of(files: Option<Arc<ChunkFiles>>) -> Self {
        Self { files, series: Vec::new(), bytes: 0 }
    }

    /// Notes a full chunk.
    #[inline]
    pub(super) fn note(&mut self, series_ref: u32, bytes: usize) {
        if let Some(files) = &self.files {
            if self.series.last() != Some(&series_ref) {
                self.series.push(series_ref);
            }
            self.bytes += bytes;
            files.wait(bytes);
        }
    }

    fn take(&mut self) -> Vec<u32> {
        if let Some(files) = &self.files {
            files.unwait(std::mem::take(&mut self.bytes));
        }
        let mut series = std::mem::take(&mut self.series);
        series.sort_unstable();
        series.dedup();
        series
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.take();
    }
}

impl Head {
    /// The full chunks that lie on the heap; each is handed out once, unless [`Head::put_kept`] gives it back.
    pub fn take_full(&mut self) -> Vec<FullChunk> {
        let mut out = Vec::new();
        for series_ref in self.waiting.take() {
            let Some(series) = self.get(series_ref) else { continue };
            let on_heap = series.full.iter().filter(|chunk| chunk.bytes.in_file().is_none());
            out.extend(on_heap.map(|chunk| FullChunk {
                series: SeriesRef(series_ref),
                window: window_of(chunk.first, self.options.window_ms),
                chunk: chunk.clone(),
            }));
        }
        out
    }

    /// Takes back what [`Head::take_full`] handed out: chunks that lie in a file now are read there, others wait on.
    pub fn put_kept(&mut self, kept: Vec<FullChunk>) {
        for FullChunk { series: SeriesRef(series_ref), chunk, .. } in kept {
            if chunk.bytes.in_file().is_none() {
                self.waiting.note(series_ref, chunk.bytes.len());
                continue;
            }
            let Some(series) = self.slots.get_mut(series_ref as usize).and_then(Option::as_deref_mut) else { continue };
            if let Ok(at) = series.full.binary_search_by_key(&chunk.first, |have| have.first)
                && let have = &mut series.full[at]
                && (have.last, have.count, have.kind) == (chunk.last, chunk.count, chunk.kind)
                // Their lengths only: a look at the bytes would bring the file into memory again.
                && have.bytes.len() == chunk.bytes.len()
            {
                have.bytes = chunk.bytes;
            }
        }
    }
}

/// Puts full chunks of any heads of a partition into its files; what is too little for a file comes back as it was.
///
/// # Errors
/// The disk refuses; nothing has changed.
pub fn keep_full(files: &ChunkFiles, full: &mut [FullChunk]) -> Result<(), Error> {
    let chunks: Vec<_> = full.iter().map(|one| (one.window, one.chunk.clone())).collect();
    for (one, kept) in full.iter_mut().zip(files.keep(&chunks)?) {
        if let Some(kept) = kept {
            one.chunk = kept;
        }
    }
    Ok(())
}
