//! An ordered map that is cheap to copy and to change a little.
//!
//! Why: a view of the agreed state is published after every batch, and readers keep old views as long as they like.
//! Cloning a `BTreeMap` of 10,000 tenants for each new one would be quadratic. Here the rows lie in sorted chunks
//! behind `Arc`s: a copy copies one vector of pointers (157 for 10,000 rows), a change copies one chunk of pointers.
//! Two levels are enough for 10⁵ rows; a persistent tree of a crate would do more than is asked.

use std::sync::Arc;

/// Rows of a chunk before it is split in halves.
const CHUNK_ROWS_MAX: usize = 128;

type Chunk<K, V> = Vec<(K, Arc<V>)>;

/// An ordered map; clones share everything that is equal.
#[derive(Debug)]
pub struct SharedMap<K, V> {
    /// Sorted, none empty, each sorted.
    chunks: Vec<Arc<Chunk<K, V>>>,
    rows: usize,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), rows: self.rows }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), rows: 0 }
    }
}

impl<K: Ord + Clone, V> SharedMap<K, V> {
    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The chunk where `key` is or belongs; none in an empty map.
    fn chunk_of(&self, key: &K) -> Option<usize> {
        let after = self.chunks.partition_point(|c| c.first().is_some_and(|(first, _)| first <= key));
        if self.chunks.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }

    /// The value at a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        let chunk = &self.chunks[self.chunk_of(key)?];
        let at = chunk.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    /// The key as the map holds it.
    #[must_use]
    pub fn key(&self, key: &K) -> Option<&K> {
        let chunk = &self.chunks[self.chunk_of(key)?];
        let at = chunk.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        Some(&chunk[at].0)
    }

    /// Puts a value, over the one that was there.
    pub fn insert(&mut self, key: K, value: Arc<V>) {
        let Some(at) = self.chunk_of(&key) else {
            self.chunks.push(Arc::new(vec![(key, value)]));
            self.rows = 1;
            return;
        };
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(found) => chunk[found].1 = value,
            Err(free) => {
                chunk.insert(free, (key, value));
                self.rows += 1;
                if chunk.len() > CHUNK_ROWS_MAX {
                    let upper = chunk.split_off(CHUNK_ROWS_MAX / 2);
                    self.chunks.insert(at + 1, Arc::new(upper));
                }
            }
        }
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        let at = self.chunk_of(key)?;
        let found = self.chunks[at].binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        let (_, value) = chunk.remove(found);
        self.rows -= 1;
        self.close_up(at);
        Some(value)
    }

    /// Joins a chunk that became small to its neighbour, so that deletions leave no long row of tiny chunks.
    fn close_up(&mut self, at: usize) {
        let rows = self.chunks[at].len();
        if rows == 0 {
            self.chunks.remove(at);
            return;
        }
        if at > 0 && rows + self.chunks[at - 1].len() <= CHUNK_ROWS_MAX / 2 {
            let chunk = self.chunks.remove(at);
            Arc::make_mut(&mut self.chunks[at - 1]).extend_from_slice(&chunk);
        } else if at + 1 < self.chunks.len() && rows + self.chunks[at + 1].len() <= CHUNK_ROWS_MAX / 2 {
            let next = self.chunks.remove(at + 1);
            Arc::make_mut(&mut self.chunks[at]).extend_from_slice(&next);
        }
    }

    /// Changes the value at a key where it lies; it is made first if it is not there. A value that other copies share
    /// is cloned once.
    pub fn edit(&mut self, key: &K, change: impl FnOnce(&mut V))
    where
        V: Clone + Default,
    {
        if self.get(key).is_none() {
            self.insert(key.clone(), Arc::default());
        }
        let Some(at) = self.chunk_of(key) else { return };
        let chunk = Arc::make_mut(&mut self.chunks[at]);
        if let Ok(found) = chunk.binary_search_by(|(k, _)| k.cmp(key)) {
            change(Arc::make_mut(&mut chunk[found].1));
        }
    }

    /// All rows in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.chunks.iter().flat_map(|c| c.iter().map(|(k, v)| (k, v)))
    }
}

impl<K: Ord + Clone, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows && self.iter().eq(other.iter())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against `BTreeMap`, with a copy kept at half time that must not change.
        #[test]
        fn it_is_a_map_whose_copies_stand_still(rows in prop::collection::vec((0u32..600, any::<u32>(), 0..4), 0..1200)) {
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let half = rows.len() / 2;
            let mut kept = None;
            for (i, (key, value, kind)) in rows.into_iter().enumerate() {
                if i == half {
                    kept = Some((map.clone(), model.clone()));
                }
                match kind {
                    0 => prop_assert_eq!(map.remove(&key).map(|v| *v), model.remove(&key)),
                    1 => {
                        map.edit(&key, |v: &mut u32| *v = v.wrapping_add(value));
                        let old = model.entry(key).or_default();
                        *old = old.wrapping_add(value);
                    }
                    _ => {
                        map.insert(key, Arc::new(value));
                        model.insert(key, value);
                    }
                }
            }
            for (map, model) in [Some((map, model)), kept].into_iter().flatten() {
                prop_assert_eq!(map.len(), model.len());
                prop_assert!(map.iter().map(|(k, v)| (*k, **v)).eq(model.iter().map(|(k, v)| (*k, *v))));
                for key in 0..600 {
                    prop_assert_eq!(map.get(&key).map(|v| **v), model.get(&key).copied());
                }
            }
        }
    }

    #[test]
    fn deletions_leave_no_tiny_chunks() {
        let mut map = SharedMap::default();
        (0..10_000_u32).for_each(|key| map.insert(key, Arc::new(key)));
        for key in (0..10_000).filter(|key| key % 100 != 0) {
            assert!(map.remove(&key).is_some());
        }
        assert_eq!(map.len(), 100);
        assert!(map.chunks.len() <= 5, "{} chunks", map.chunks.len());
        for key in (0..10_000).step_by(100) {
            assert!(map.remove(&key).is_some());
        }
        assert!(map.is_empty() && map.chunks.is_empty());
    }

    #[test]
    fn a_change_copies_one_chunk() {
        let mut map = SharedMap::default();
        for key in 0..10_000u32 {
            map.insert(key, Arc::new(key));
        }
        let before = map.clone();
        map.insert(5_000, Arc::new(0));
        let shared = before.chunks.iter().zip(&map.chunks).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared + 1, before.chunks.len());
    }
}
