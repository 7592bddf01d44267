//! Symbols: each label name and value once a node, as a number.
//!
//! Why: a million series repeat a few thousand texts. A series keeps pairs of numbers, eight bytes each; the texts lie
//! here, shared by all heads of all partitions and tenants.
//!
//! Texts are counted: an index that begins to use one takes a share of it and gives it back when the last posting
//! list with it is gone, so that churn (pods that come and go) leaves nothing behind. A number is given to another
//! text only after that.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::{RwLock, RwLockReadGuard};

/// The number of a text.
pub(crate) type Symbol = u32;

/// All texts of a node. Locks are held for single looks and for the label building of one select, never across I/O.
#[derive(Debug, Default)]
pub struct Symbols(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    table: HashTable<Symbol>,
    slots: Vec<Slot>,
    free: Vec<Symbol>,
    hasher: DefaultHashBuilder,
    text_bytes: usize,
}

#[derive(Debug)]
struct Slot {
    text: Box<str>,
    shares: u32,
}

impl Symbols {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many texts are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().table.len()
    }

    /// Whether no text is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all texts held.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.0.read().text_bytes
    }

    /// Takes a share of a text.
    pub(crate) fn take(&self, text: &str) -> Symbol {
        self.0.write().take(text)
    }

    /// Gives a share back.
    pub(crate) fn give_back(&self, symbol: Symbol) {
        self.0.write().give_back(symbol);
    }

    /// The number of a text that is held.
    pub(crate) fn find(&self, text: &str) -> Option<Symbol> {
        self.0.read().find(text)
    }

    /// A look at the texts; writers wait meanwhile.
    pub(crate) fn view(&self) -> View<'_> {
        View(self.0.read())
    }
}

/// See [`Symbols::view`].
pub(crate) struct View<'a>(RwLockReadGuard<'a, Inner>);

impl View<'_> {
    /// Lets writers through that wait. Numbers in use stay what they are.
    pub(crate) fn give_way(&mut self) {
        RwLockReadGuard::bump(&mut self.0);
    }

    /// The text of a number that is in use.
    pub(crate) fn text(&self, symbol: Symbol) -> &str {
        &self.0.slots[symbol as usize].text
    }

    /// The number of a text that is held.
    pub(crate) fn find(&self, text: &str) -> Option<Symbol> {
        self.0.find(text)
    }
}

impl Inner {
    fn find(&self, text: &str) -> Option<Symbol> {
        let hash = self.hasher.hash_one(text);
        self.table.find(hash, |symbol| *self.slots[*symbol as usize].text == *text).copied()
    }

    fn take(&mut self, text: &str) -> Symbol {
        if let Some(symbol) = self.find(text) {
            self.slots[symbol as usize].shares += 1;
            return symbol;
        }
        let slot = Slot { text: text.into(), shares: 1 };
        self.text_bytes += text.len();
        let symbol = if let Some(symbol) = self.free.pop() {
            self.slots[symbol as usize] = slot;
            symbol
        } else {
            self.slots.push(slot);
            let last = self.slots.len() - 1;
            assert!(last < u32::MAX as usize, "symbols are numbered in four bytes");
            #[allow(clippy::cast_possible_truncation, reason = "asserted above")]
            let symbol = last as Symbol;
            symbol
        };
        let Self { table, slots, hasher, .. } = self;
        let hash = hasher.hash_one(text);
        table.insert_unique(hash, symbol, |symbol| hasher.hash_one(&*slots[*symbol as usize].text));
        symbol
    }

    fn give_back(&mut self, symbol: Symbol) {
        let Self { table, slots, hasher, free, text_bytes } = self;
        let slot = &mut slots[symbol as usize];
        assert!(slot.shares > 0, "symbol {symbol} is given back more often than taken");
        slot.shares -= 1;
        if slot.shares > 0 {
            return;
        }
        let text = std::mem::take(&mut slot.text);
        *text_bytes -= text.len();
        if let Ok(entry) = table.find_entry(hasher.hash_one(&*text), |have| *have == symbol) {
            entry.remove();
        }
        free.push(symbol);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_lives_as_long_as_its_shares() {
        let symbols = Symbols::new();
        let (a, b) = (symbols.take("a"), symbols.take("b"));
        assert_eq!((symbols.take("a"), symbols.len(), symbols.text_bytes()), (a, 2, 2));
        symbols.give_back(a);
        assert_eq!((symbols.find("a"), symbols.view().text(a)), (Some(a), "a"));
        symbols.give_back(a);
        assert_eq!((symbols.find("a"), symbols.len()), (None, 1));
        assert_eq!((symbols.take("c"), symbols.view().text(b)), (a, "b"));
    }

    #[test]
    fn churn_leaves_nothing() {
        let symbols = Symbols::new();
        for i in 0..10_000 {
            let symbol = symbols.take(&format!("pod-{i}"));
            symbols.give_back(symbol);
        }
        assert!(symbols.is_empty() && symbols.0.read().slots.len() == 1);
    }
}
