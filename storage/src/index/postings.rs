//! Posting lists: the sorted refs of the series that have one label pair.
//!
//! Why three forms: most pairs of a real head name one series (an address, a pod), some name a handful, a few (a job,
//! a metric) name a large part. One number inline, a small sorted array, a compressed bitmap: each at its least
//! memory. The algebra works on bitmaps; a small list meets a large one by probing, never by walking the large one.

use roaring::RoaringBitmap;

/// Above so many refs an array becomes a bitmap.
const FEW_MAX: usize = 64;

/// A sorted set of series refs.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Postings {
    /// Nobody.
    #[default]
    None,
    /// One.
    One(u32),
    /// A few, sorted.
    Few(Vec<u32>),
    /// Many.
    Many(Box<RoaringBitmap>),
}

impl Postings {
    /// Adds a ref.
    pub fn insert(&mut self, series: u32) {
        match self {
            Self::None => *self = Self::One(series),
            Self::One(have) if *have == series => {}
            Self::One(have) => *self = Self::Few(vec![(*have).min(series), (*have).max(series)]),
            Self::Few(list) => {
                if let Err(at) = list.binary_search(&series) {
                    if list.len() == FEW_MAX {
                        let mut set: RoaringBitmap = list.iter().copied().collect();
                        set.insert(series);
                        *self = Self::Many(Box::new(set));
                        return;
                    }
                    if list.len() == list.capacity() {
                        list.reserve_exact(list.len() / 2 + 1);
                    }
                    list.insert(at, series);
                }
            }
            Self::Many(set) => {
                set.insert(series);
            }
        }
    }

    /// Removes a ref; a list that has become small takes its small form again.
    pub fn remove(&mut self, series: u32) {
        match self {
            Self::None => {}
            Self::One(have) => {
                if *have == series {
                    *self = Self::None;
                }
            }
            Self::Few(list) => {
                if let Ok(at) = list.binary_search(&series) {
                    list.remove(at);
                }
                match list.as_slice() {
                    [] => *self = Self::None,
                    [one] => *self = Self::One(*one),
                    _ => {}
                }
            }
            Self::Many(set) => {
                set.remove(series);
                // Half, and not the border itself: a list that wavers around it must not change its form each time.
                if set.len() <= FEW_MAX as u64 / 2 {
                    *self = Self::Few(set.iter().collect());
                }
            }
        }
    }

    /// How many refs.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Few(list) => list.len() as u64,
            Self::Many(set) => set.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the ref is among them.
    #[must_use]
    pub fn contains(&self, series: u32) -> bool {
        match self {
            Self::None => false,
            Self::One(have) => *have == series,
            Self::Few(list) => list.binary_search(&series).is_ok(),
            Self::Many(set) => set.contains(series),
        }
    }

    /// The refs in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (few, many) = match self {
            Self::None => (&[][..], None),
            Self::One(one) => (std::slice::from_ref(one), None),
            Self::Few(list) => (list.as_slice(), None),
            Self::Many(set) => (&[][..], Some(set.iter())),
        };
        few.iter().copied().chain(many.into_iter().flatten())
    }

    /// As a set of its own.
    #[must_use]
    pub fn to_set(&self) -> RoaringBitmap {
        match self {
            Self::Many(set) => (**set).clone(),
            few => few.iter().collect(),
        }
    }

    /// Adds all refs to `set`: or.
    pub fn add_to(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Many(many) => *set |= &**many,
            few => few.iter().for_each(|series| {
                set.insert(series);
            }),
        }
    }

    /// Keeps in `set` what is here too: and.
    pub fn keep_in(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Many(many) => *set &= &**many,
            few => *set = few.iter().filter(|series| set.contains(*series)).collect(),
        }
    }

    /// Removes from `set` what is here: without.
    pub fn remove_from(&self, set: &mut RoaringBitmap) {
        match self {
            Self::Many(many) => *set -= &**many,
            few => few.iter().for_each(|series| {
                set.remove(series);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn list_of(model: &BTreeSet<u32>) -> Postings {
        let mut list = Postings::default();
        model.iter().rev().for_each(|series| list.insert(*series));
        list
    }

    proptest! {
        #[test]
        fn lists_are_what_a_sorted_set_is(steps in proptest::collection::vec((any::<bool>(), 0_u32..150), 0..400)) {
            let (mut list, mut model) = (Postings::default(), BTreeSet::new());
            for (add, series) in steps {
                if add { list.insert(series); model.insert(series); } else { list.remove(series); model.remove(&series); }
                prop_assert_eq!(list.contains(series), model.contains(&series));
            }
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((list.len(), list.is_empty()), (model.len() as u64, model.is_empty()));
        }

        #[test]
        fn the_algebra_is_that_of_sets(
            a in proptest::collection::btree_set(0_u32..200, 0..150),
            b in proptest::collection::btree_set(0_u32..200, 0..150),
        ) {
            let (left, right) = (list_of(&a).to_set(), list_of(&b));
            let check = |step: fn(&Postings, &mut RoaringBitmap), expected: BTreeSet<u32>| {
                let mut set = left.clone();
                step(&right, &mut set);
                assert_eq!(set.iter().collect::<BTreeSet<_>>(), expected);
            };
            check(Postings::add_to, &a | &b);
            check(Postings::keep_in, &a & &b);
            check(Postings::remove_from, &a - &b);
        }
    }
}
