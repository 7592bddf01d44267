//! Labels: who a series is.
//!
//! One allocation for all pairs, sorted by name, so that comparing, hashing and moving a label set is one pass
//! over one buffer. The buffer is `(varint length, name, varint length, value)*`; the same bytes are what the
//! stable hash is taken over, so a series has the same hash on every node, in every version and in every block.
//!
//! It does not judge names: what a tenant may send is decided at the door (`node/src/write/admit.rs`).

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;

/// The label that holds the metric's name.
pub const METRIC_NAME: &str = "__name__";

/// A sorted set of label pairs. Names are unique; an empty value means "no such label" and is never stored.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(Box<[u8]>);

impl Labels {
    /// The empty set.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Sorts the pairs, drops empty values; of two pairs with one name the later wins.
    #[must_use]
    pub fn from_pairs<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut builder = LabelsBuilder::default();
        for (name, value) in pairs {
            builder.set(name.as_ref(), value.as_ref());
        }
        builder.build()
    }

    /// Takes pairs that are sorted by name already, unique, with no empty value: the caller has checked.
    #[must_use]
    pub fn from_sorted<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        let size = pairs.clone().map(|(n, v)| pair_size(n, v)).sum();
        let mut bytes = Vec::with_capacity(size);
        for (name, value) in pairs {
            put_pair(&mut bytes, name, value);
        }
        debug_assert_eq!(bytes.len(), size, "size counted and size written differ");
        let labels = Self(bytes.into_boxed_slice());
        debug_assert!(labels.iter().zip(labels.iter().skip(1)).all(|(a, b)| a.0 < b.0), "labels are not sorted");
        labels
    }

    /// The pairs in order of name.
    #[must_use]
    pub fn iter(&self) -> LabelsIter<'_> {
        LabelsIter(&self.0)
    }

    /// The value of `name`, `None` when it is absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        for (have, value) in self.iter() {
            match have.cmp(name) {
                Ordering::Less => {}
                Ordering::Equal => return Some(value),
                Ordering::Greater => return None,
            }
        }
        None
    }

    /// The metric's name, empty when there is none.
    #[must_use]
    pub fn metric_name(&self) -> &str {
        self.get(METRIC_NAME).unwrap_or_default()
    }

    /// How many pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The stable 128-bit hash: what digests and series tables are keyed by. See [`hash128`].
    #[must_use]
    pub fn hash128(&self) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&self.0)
    }

    /// A 64-bit hash for tables that live in memory only.
    #[must_use]
    pub fn hash64(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.0)
    }

    /// The buffer itself, for formats that store it whole.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// These labels without those named.
    #[must_use]
    pub fn without(&self, drop: impl Fn(&str) -> bool) -> Self {
        let size = self.pieces().filter(|(name, _)| !drop(name)).map(|(_, piece)| piece.len()).sum();
        if size == self.0.len() {
            return self.clone();
        }
        let mut bytes = Vec::with_capacity(size);
        self.pieces().filter(|(name, _)| !drop(name)).for_each(|(_, piece)| bytes.extend_from_slice(piece));
        Self(bytes.into_boxed_slice())
    }

    /// Appends the bytes of what [`Self::without`] would make: for looking up, where most are there already.
    pub fn put_without(&self, out: &mut Vec<u8>, drop: impl Fn(&str) -> bool) {
        self.pieces().filter(|(name, _)| !drop(name)).for_each(|(_, piece)| out.extend_from_slice(piece));
    }

    /// Each name with the bytes of its pair.
    fn pieces(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let before = rest;
            let mut iter = LabelsIter(before);
            let (name, _) = iter.next()?;
            rest = iter.0;
            Some((name, &before[..before.len() - rest.len()]))
        })
    }

    /// These labels without the metric's name.
    #[must_use]
    pub fn without_name(&self) -> Self {
        self.without(|name| name == METRIC_NAME)
    }

    /// A builder that starts from these labels.
    #[must_use]
    pub fn to_builder(&self) -> LabelsBuilder {
        LabelsBuilder { pairs: self.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect() }
    }
}

/// The stable hash of pairs that are sorted, unique and without empty values, without building [`Labels`]:
/// `scratch` is cleared and reused. Equal to [`Labels::hash128`] of the same pairs.
#[must_use]
pub fn hash128<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>, scratch: &mut Vec<u8>) -> u128 {
    scratch.clear();
    for (name, value) in pairs {
        put_bytes(scratch, name);
        put_bytes(scratch, value);
    }
    xxhash_rust::xxh3::xxh3_128(scratch)
}

/// As [`hash128`], of pairs that already stand in the form of [`Labels::as_bytes`].
#[inline]
#[must_use]
pub fn hash128_encoded(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}

/// Orders as Prometheus does: pair by pair, name before value, the shorter first.
impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `{a="1", b="2"}`, as Prometheus prints a label set (the metric's name is a label like any other here).
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            if is_legacy_name(name) {
                write!(f, "{comma}{name}=")?;
            } else {
                write!(f, "{comma}{name:?}=")?;
            }
            write!(f, "{value:?}")?;
        }
        f.write_str("}")
    }
}

/// Whether a label name is of the classic form `[a-zA-Z_][a-zA-Z0-9_]*`, which needs no quotes.
#[must_use]
pub fn is_legacy_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether a metric name is of the classic form `[a-zA-Z_:][a-zA-Z0-9_:]*`, which needs no quotes.
#[must_use]
pub fn is_legacy_metric_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}

/// Walks the pairs of [`Labels`] in order of name.
#[derive(Clone)]
pub struct LabelsIter<'a>(&'a [u8]);

impl<'a> Iterator for LabelsIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let name = take_str(&mut self.0);
        let value = take_str(&mut self.0);
        Some((name, value))
    }
}

/// Collects pairs in any order and makes [`Labels`] of them.
#[derive(Clone, Debug, Default)]
pub struct LabelsBuilder {
    /// Sorted by name, unique.
    pairs: Vec<(String, String)>,
}

impl LabelsBuilder {
    /// Sets `name` to `value`; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        match self.pairs.binary_search_by(|(have, _)| have.as_str().cmp(name)) {
            Ok(at) if value.is_empty() => {
                self.pairs.remove(at);
            }
            Ok(at) => value.clone_into(&mut self.pairs[at].1),
            Err(_) if value.is_empty() => {}
            Err(at) => self.pairs.insert(at, (name.to_owned(), value.to_owned())),
        }
        self
    }

    /// Removes `name`.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.set(name, "")
    }

    /// The value of `name` so far.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.pairs.binary_search_by(|(have, _)| have.as_str().cmp(name)).ok()?;
        Some(&self.pairs[at].1)
    }

    /// The finished set.
    #[must_use]
    pub fn build(&self) -> Labels {
        Labels::from_sorted(self.pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }
}

fn varint_size(mut n: usize) -> usize {
    let mut size = 1;
    while n >= 0x80 {
        n >>= 7;
        size += 1;
    }
    size
}

fn pair_size(name: &str, value: &str) -> usize {
    varint_size(name.len()) + name.len() + varint_size(value.len()) + value.len()
}

fn put_pair(out: &mut Vec<u8>, name: &str, value: &str) {
    put_bytes(out, name.as_bytes());
    put_bytes(out, value.as_bytes());
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "seven bits fit")]
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut n = bytes.len();
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push((n & 0x7f) as u8);
    out.extend_from_slice(bytes);
}

#[inline]
fn take_str<'a>(from: &mut &'a [u8]) -> &'a str {
    let mut n = 0_usize;
    let mut shift = 0;
    loop {
        let byte = from[0];
        *from = &from[1..];
        n |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
        shift += 7;
    }
    let (text, rest) = from.split_at(n);
    *from = rest;
    debug_assert!(std::str::from_utf8(text).is_ok(), "labels hold text that is not UTF-8");
    text_of(text)
}

/// The bytes came from `&str`s through [`put_pair`] and the buffer is private: checking them again on each read
/// cost a third of a large `series` answer.
#[allow(unsafe_code, reason = "the private buffer is written from &str only; re-checking UTF-8 is a third of a select")]
#[inline]
fn text_of(bytes: &[u8]) -> &str {
    // SAFETY: `Labels.0` is private, and every byte of it was copied from a `&str` by `put_pair`.
    unsafe { std::str::from_utf8_unchecked(bytes) }
}

impl Borrow<[u8]> for Labels {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn labels_are_what_a_sorted_map_is(pairs in proptest::collection::vec(("[a-z]{0,3}", "[a-z0-9é]{0,200}"), 0..20)) {
            let mut model = std::collections::BTreeMap::new();
            for (n, v) in &pairs {
                if v.is_empty() { model.remove(n); } else { model.insert(n.clone(), v.clone()); }
            }
            let labels = Labels::from_pairs(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            let half = labels.without(|name| name < "m");
            prop_assert!(half.iter().eq(labels.iter().filter(|(name, _)| *name >= "m")));
            let mut key = Vec::new();
            labels.put_without(&mut key, |name| name < "m");
            prop_assert_eq!(key.as_slice(), half.as_bytes());
            let have: Vec<_> = labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            let want: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(have, want);
            for (n, v) in &model { prop_assert_eq!(labels.get(n), Some(v.as_str())); }
            let hash = hash128(model.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())), &mut Vec::new());
            prop_assert_eq!(labels.hash128(), hash);
        }
    }

    #[test]
    fn order_is_pair_by_pair() {
        let set = |pairs: &[(&str, &str)]| Labels::from_pairs(pairs.iter().copied());
        assert!(set(&[("a", "1")]) < set(&[("a", "1"), ("b", "1")]));
        assert!(set(&[("a", "10")]) < set(&[("a", "2")]));
        assert!(set(&[("aa", "1")]) < set(&[("b", "0")]));
    }

    #[test]
    fn the_hash_never_changes() {
        // Digests on disk rest on this value: a change of it is a change of the format.
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "node")]);
        assert_eq!(labels.hash128(), 49_341_138_757_092_499_829_100_056_865_034_516_684);
    }
}
