//! The label index of one head: from pairs to posting lists, and the values of each name.
//!
//! Why the values of a name are kept in order: a pattern with a literal prefix then looks at the values that start so
//! and at no others. New values gather in an unsorted tail that is sorted in when it has grown, so that a new series
//! never pays for moving a large array.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use engram_model::matcher::has_prefix;
use engram_model::{MatchOp, Matcher};
use roaring::RoaringBitmap;

use super::symbols::{Symbol, Symbols, View};
use crate::index::postings::Postings;

/// A tail this long is sorted in, or one of an eighth of the sorted part when that is longer.
const TAIL_MAX: usize = 64;

/// Spreads symbol numbers over a table: they are small and dense, and come from us, so one multiplication will do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl std::hash::Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = fold(product);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "both halves are meant")]
fn fold(product: u128) -> u64 {
    (product >> 64) as u64 ^ product as u64
}

type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct LabelIndex {
    symbols: Arc<Symbols>,
    lists: NumberMap<u64, Postings>,
    names: NumberMap<Symbol, Values>,
    all: RoaringBitmap,
}

/// The values of one name: sorted by text up to `sorted`, then as they came.
#[derive(Debug, Default)]
struct Values {
    list: Vec<Symbol>,
    sorted: usize,
}

fn key(name: Symbol, value: Symbol) -> u64 {
    u64::from(name) << 32 | u64::from(value)
}

impl LabelIndex {
    pub(crate) fn new(symbols: Arc<Symbols>) -> Self {
        Self { symbols, lists: HashMap::default(), names: HashMap::default(), all: RoaringBitmap::new() }
    }

    /// Enters a series and gives its pairs as symbols, in the order given.
    pub(crate) fn insert<'a>(
        &mut self,
        series: u32,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Box<[(Symbol, Symbol)]> {
        let mut pairs = Vec::with_capacity(labels.size_hint().0);
        for (name, value) in labels {
            pairs.push(self.insert_pair(series, name, value));
        }
        self.all.insert(series);
        pairs.into_boxed_slice()
    }

    /// A share of the name's text is held for the name, one of the value's for each list.
    fn insert_pair(&mut self, series: u32, name: &str, value: &str) -> (Symbol, Symbol) {
        let (known_name, known_value) = {
            let view = self.symbols.view();
            (view.find(name), view.find(value))
        };
        // A text that another head holds may be gone by now; one that this head has a list for is not.
        let known_name = known_name.filter(|symbol| self.names.contains_key(symbol));
        if let (Some(name), Some(value)) = (known_name, known_value)
            && let Some(list) = self.lists.get_mut(&key(name, value))
        {
            list.insert(series);
            return (name, value);
        }
        let name = known_name.unwrap_or_else(|| self.symbols.take(name));
        let value = self.symbols.take(value);
        self.names.entry(name).or_default().push(value, &self.symbols);
        self.lists.entry(key(name, value)).or_default().insert(series);
        (name, value)
    }

    /// Takes series out. Values that nobody has any more are dropped in one pass over their name's values.
    pub(crate) fn remove<'a>(&mut self, gone: impl Iterator<Item = (u32, &'a [(Symbol, Symbol)])>) {
        let mut emptied: NumberMap<Symbol, Vec<Symbol>> = HashMap::default();
        for (series, pairs) in gone {
            self.all.remove(series);
            for &(name, value) in pairs {
                let Some(list) = self.lists.get_mut(&key(name, value)) else { continue };
                list.remove(series);
                if list.is_empty() {
                    self.lists.remove(&key(name, value));
                    emptied.entry(name).or_default().push(value);
                }
            }
        }
        for (name, mut values) in emptied {
            values.sort_unstable();
            if let Some(have) = self.names.get_mut(&name) {
                have.drop_all(&values);
                if have.list.is_empty() {
                    self.names.remove(&name);
                    self.symbols.give_back(name);
                }
            }
            values.iter().for_each(|value| self.symbols.give_back(*value));
        }
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = Symbol> + '_ {
        self.names.keys().copied()
    }

    /// The values of a name with their lists, in no order.
    pub(crate) fn values(&self, name: Symbol) -> impl Iterator<Item = (Symbol, &Postings)> {
        let values = self.names.get(&name).map_or(&[][..], |values| values.list.as_slice());
        values.iter().filter_map(move |value| Some((*value, self.lists.get(&key(name, *value))?)))
    }

    /// The list of one pair.
    fn list(&self, name: Symbol, value: &str, view: &View<'_>) -> Option<&Postings> {
        self.lists.get(&key(name, view.find(value)?))
    }

    /// The series all matchers pass.
    ///
    /// A matcher that a missing label passes is answered by subtraction: what is left are the series whose value it
    /// does not refuse, and those without the label. All others select, the smallest lists first.
    pub(crate) fn select(&self, matchers: &[Matcher]) -> RoaringBitmap {
        let view = self.symbols.view();
        let (takers, losers): (Vec<_>, Vec<_>) = matchers.iter().partition(|matcher| !matcher.matches_empty());
        let mut single = Vec::new();
        let mut wide = Vec::new();
        for matcher in takers {
            match view.find(&matcher.name) {
                None => return RoaringBitmap::new(),
                Some(name) if matcher.op == MatchOp::Equal => match self.list(name, &matcher.value, &view) {
                    None => return RoaringBitmap::new(),
                    Some(list) => single.push(list),
                },
                Some(name) => wide.push((name, matcher)),
            }
        }
        single.sort_unstable_by_key(|list| list.len());
        let mut found: Option<RoaringBitmap> = None;
        for list in single {
            match &mut found {
                None => found = Some(list.to_set()),
                Some(set) => list.keep_in(set),
            }
        }
        for (name, matcher) in wide {
            if found.as_ref().is_some_and(RoaringBitmap::is_empty) {
                return RoaringBitmap::new();
            }
            let passing = self.passing(name, matcher, true, &view);
            match &mut found {
                None => found = Some(passing),
                Some(set) => *set &= passing,
            }
        }
        let mut set = found.unwrap_or_else(|| self.all.clone());
        for matcher in losers {
            if !matcher.matches_all()
                && !set.is_empty()
                && let Some(name) = view.find(&matcher.name)
            {
                set -= self.passing(name, matcher, false, &view);
            }
        }
        set
    }

    /// The series that have the name with a value for which the matcher's answer is `wanted`. Each value is looked
    /// at once, however many series have it.
    fn passing(&self, name: Symbol, matcher: &Matcher, wanted: bool, view: &View<'_>) -> RoaringBitmap {
        let mut out = RoaringBitmap::new();
        // The values that pass the pattern itself are what the short cuts know of.
        let of_pattern = wanted != matcher.is_negative();
        if of_pattern && let Some(literals) = matcher.literals() {
            let lists = literals.into_iter().filter_map(|value| self.list(name, value, view));
            lists.for_each(|list| list.add_to(&mut out));
            return out;
        }
        let Some(values) = self.names.get(&name) else { return out };
        let prefix = if of_pattern { matcher.prefix() } else { "" };
        for value in values.starting_with(prefix, view) {
            if matcher.matches(view.text(value)) == wanted
                && let Some(list) = self.lists.get(&key(name, value))
            {
                list.add_to(&mut out);
            }
        }
        out
    }

    /// Memory of the tables, about; the texts are the node's.
    pub(crate) fn heap_bytes(&self) -> usize {
        let lists = self.lists.capacity() * (size_of::<(u64, Postings)>() + 1);
        let values: usize = self.names.values().map(|values| values.list.capacity() * 4 + 48).sum();
        let inner: usize =
            self.lists.values().map(|list| if let Postings::Few(few) = list { few.capacity() * 4 } else { 0 }).sum();
        lists + values + inner
    }
}

impl Drop for LabelIndex {
    fn drop(&mut self) {
        for (name, values) in &self.names {
            self.symbols.give_back(*name);
            values.list.iter().for_each(|value| self.symbols.give_back(*value));
        }
    }
}

impl Values {
    fn push(&mut self, value: Symbol, symbols: &Symbols) {
        self.list.push(value);
        let tail = self.list.len() - self.sorted;
        if tail >= TAIL_MAX.max(self.sorted / 8) {
            let view = symbols.view();
            // The sort finds the long sorted run and merges the tail into it.
            self.list.sort_by(|a, b| view.text(*a).cmp(view.text(*b)));
            self.sorted = self.list.len();
        }
    }

    /// `gone` is sorted.
    fn drop_all(&mut self, gone: &[Symbol]) {
        let is_gone = |value: &Symbol| gone.binary_search(value).is_ok();
        self.sorted -= self.list[..self.sorted].iter().filter(|value| is_gone(value)).count();
        self.list.retain(|value| !is_gone(value));
        self.list.shrink_to(self.list.len() * 2);
    }

    fn starting_with<'a>(&'a self, prefix: &'a str, view: &'a View<'_>) -> impl Iterator<Item = Symbol> + 'a {
        let (sorted, tail) = self.list.split_at(self.sorted);
        let from = if prefix.is_empty() { 0 } else { sorted.partition_point(|value| view.text(*value) < prefix) };
        let near = sorted[from..].iter().take_while(move |value| has_prefix(view.text(**value), prefix));
        near.chain(tail.iter().filter(move |value| has_prefix(view.text(**value), prefix))).copied()
    }
}
