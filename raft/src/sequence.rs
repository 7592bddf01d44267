//! The committed log without the consensus: one list of commands, applied as they come by the same pure function.
//!
//! Why: a simulation runs thousands of clusters in a minute, and what it looks for is what nodes do with agreed state
//! that they learn late. A Raft group on RocksDB is too slow for that, and how it agrees is tested elsewhere. So here
//! agreement is given: a command is committed at once, and the view of each index stays, for whoever is told of it later.

use std::collections::BTreeMap;
use std::sync::Arc;

use engram_model::Millis;
use parking_lot::Mutex;

use crate::command::{Envelope, Outcome, Proposal};
use crate::error::Error;
use crate::group::Committed;
use crate::state::{Base, Draft, Each, Table, View, apply};

/// Index before the first command: Raft's own first entries take 0 and 1.
const BEFORE: u64 = 1;

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

#[derive(Default)]
struct InMemory(Rows);

impl Base for InMemory {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, each: Each<'_>) -> Result<(), Error> {
        let of_table = self.0.iter().filter(|((of, _), _)| *of == table);
        of_table.into_iter().try_for_each(|((_, key), value)| each(key, value))
    }
}

struct State {
    rows: InMemory,
    /// The view of index `BEFORE + i` at `i`.
    views: Vec<Arc<View>>,
}

/// The committed log. Clones share it.
#[derive(Clone)]
pub struct Sequence(Arc<Mutex<State>>);

impl Default for Sequence {
    fn default() -> Self {
        let first = View { applied: Some(BEFORE), ..View::default() };
        Self(Arc::new(Mutex::new(State { rows: InMemory::default(), views: vec![Arc::new(first)] })))
    }
}

impl Sequence {
    /// Commits and applies a command at log time `at`.
    ///
    /// # Errors
    /// [`Error::Refused`]: committed, and changed nothing but the time.
    pub fn commit(&self, proposal: Proposal, at: Millis) -> Result<Committed, Error> {
        let mut state = self.0.lock();
        let index = BEFORE + state.views.len() as u64;
        let envelope = Envelope { at, by: proposal.by, command: proposal.command };
        let mut draft = Draft::new(&state.rows);
        let outcome = apply(&mut draft, &envelope, index)?;
        let (writes, changes) = draft.finish();
        for (key, value) in writes {
            match value {
                Some(value) => drop(state.rows.0.insert(key, value)),
                None => drop(state.rows.0.remove(&key)),
            }
        }
        let next = state.views.last().map_or_else(View::default, |last| last.after(Some(index), changes));
        state.views.push(Arc::new(next));
        match outcome {
            Outcome::Refused(refusal) => Err(refusal.into()),
            outcome => Ok(Committed { index, outcome }),
        }
    }

    /// Index of the last command.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.0.lock().views.len() as u64
    }

    /// The state as of an index, the newest for one that is not there yet.
    #[must_use]
    pub fn view(&self, index: u64) -> Arc<View> {
        let state = self.0.lock();
        let at = usize::try_from(index.saturating_sub(BEFORE)).unwrap_or(usize::MAX).min(state.views.len() - 1);
        state.views[at].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::state::NodeSpec;
    use engram_model::place::NodeId;

    #[test]
    fn commands_are_applied_in_order_and_every_view_stays() {
        let log = Sequence::default();
        let node = NodeSpec { zone: "a".into(), grpc: "g".into(), http: "h".into(), version: "1".into() };
        let propose = |command| log.commit(Proposal { by: "test".into(), command }, 7);
        let register = |token: &str| Command::RegisterNode { token: token.into(), node: node.clone() };
        assert!(matches!(propose(register("early")), Err(Error::Refused(_))));
        let founder = NodeId(1);
        let bootstrap = Command::Bootstrap { cluster_id: "c".into(), partition_count: 2, founder, node: node.clone() };
        let first = propose(bootstrap).unwrap();
        let second = propose(register("b")).unwrap();
        assert_eq!((first.index, second.index, log.last()), (3, 4, 4));
        assert_eq!(second.outcome, Outcome::Node { id: NodeId(4) });
        assert!(log.view(2).cluster.is_none());
        assert_eq!((log.view(3).nodes.len(), log.view(4).nodes.len(), log.view(99).applied), (1, 2, Some(4)));
    }
}
