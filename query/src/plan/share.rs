//! Common sub-expressions: what is written twice is evaluated once.
//!
//! Two subtrees are the same when they differ in nothing but where they stand and are evaluated at the same steps, that
//! is, under the same subquery and the same [`Node::Once`]. Of nested ones the largest is shared; what is inside of it
//! counts once. All take the copy that stands last, because of equal remarks upstream keeps the last; where the same
//! remark is made between the two, its place can be another one.
//!
//! Whether rows are kept for the next is decided by the engine, which knows how many there are: what could be streamed
//! and is large is evaluated again instead.
//!
//! Not shared: what a function looks at as a selector (`timestamp(x)`, `absent(x)`, ranges), and literals.

use hashbrown::HashMap;
use xxhash_rust::xxh3::xxh3_128;

use super::{Node, Plan, Selector, Shared};

/// A subtree: what it says, and under which of the nodes that set the steps.
type Key = (u128, usize);

/// What is known of a node, in the order of a walk from the root, children in order.
struct Seen {
    digest: u128,
    /// Nodes of the subtree, itself inside.
    size: usize,
    /// May be replaced where it stands.
    is_free: bool,
}

pub(super) fn share(plan: &mut Plan) {
    let mut seen = Vec::new();
    digest(&plan.root, true, &mut seen);
    let mut counts = HashMap::new();
    count(&plan.root, 0, 0, &seen, &mut counts);
    counts.retain(|_, count| *count > 1);
    if counts.is_empty() {
        return;
    }
    let slots: HashMap<Key, (usize, usize)> = counts.iter().map(|(key, count)| (*key, (0, *count))).collect();
    let mut wrapping = Wrapping { seen, slots, made: HashMap::new(), used: 0 };
    wrapping.wrap(&mut plan.root, 0, 0);
}

/// What the subtree says, without places.
fn digest(node: &Node, is_free: bool, seen: &mut Vec<Seen>) -> u128 {
    let at = seen.len();
    seen.push(Seen { digest: 0, size: 0, is_free });
    let mut said = Said::default();
    said.node(node);
    let mut weighs = false;
    let inner_free = !looks_at_selector(node);
    for child in node.children() {
        weighs |= !matches!(child, Node::Number(..) | Node::Text(..));
        said.0.extend_from_slice(&digest(child, inner_free, seen).to_le_bytes());
    }
    let weighs = match node {
        Node::Instant(_) => true,
        Node::Number(..) | Node::Text(..) | Node::Nothing(_) | Node::Range(_) | Node::Subquery(_) => false,
        Node::Call(call) => weighs || call.args.iter().any(|arg| matches!(arg, Node::Range(_))),
        _ => weighs,
    };
    let size = seen.len() - at;
    let digest = xxh3_128(&said.0);
    seen[at] = Seen { digest, size, is_free: is_free && weighs };
    digest
}

/// Whether a node asks what its argument is, and not only for its rows.
fn looks_at_selector(node: &Node) -> bool {
    match node {
        Node::Call(call) => matches!(call.func, "timestamp" | "start_timestamp" | "absent" | "absent_over_time"),
        Node::Once(_) => true,
        _ => false,
    }
}

/// Whether the children of a node are evaluated at steps of its own.
fn sets_steps(node: &Node) -> bool {
    matches!(node, Node::Subquery(_) | Node::Once(_))
}

/// Counts how often each subtree has to be evaluated when those found before are not. Returns nothing for the size: the
/// walk finds it in `seen`. Children are walked from the last to the first.
fn count(node: &Node, at: usize, steps: usize, seen: &[Seen], counts: &mut HashMap<Key, usize>) {
    let Seen { digest, is_free, .. } = seen[at];
    if is_free {
        let count = counts.entry((digest, steps)).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
    }
    let steps = if sets_steps(node) { at } else { steps };
    let children = node.children();
    for (child, at) in children.iter().zip(places(at, children.len(), seen)).rev() {
        count(child, at, steps, seen, counts);
    }
}

/// Where the children of the node at `at` stand.
fn places(at: usize, children: usize, seen: &[Seen]) -> Vec<usize> {
    let mut next = at + 1;
    let mut places = Vec::with_capacity(children);
    for _ in 0..children {
        places.push(next);
        next += seen.get(next).map_or(1, |seen| seen.size);
    }
    places
}

struct Wrapping {
    seen: Vec<Seen>,
    /// How many evaluations of each are saved and one more; the number it has got.
    slots: HashMap<Key, (usize, usize)>,
    /// Those that were met, as they are shared.
    made: HashMap<Key, Node>,
    used: usize,
}

impl Wrapping {
    /// The same walk as [`count`]'s.
    fn wrap(&mut self, node: &mut Node, at: usize, steps: usize) {
        let Seen { digest, is_free, .. } = self.seen[at];
        let key = (digest, steps);
        let uses = if is_free { self.slots.get(&key).map(|(_, uses)| *uses) } else { None };
        if let Some(uses) = uses {
            let span = node.span();
            if let Some(inner) = self.made.get(&key) {
                let slot = self.slots[&key].0;
                *node = Node::Shared(Box::new(Shared { slot, uses, inner: inner.clone(), span }));
                return;
            }
            let slot = self.used;
            self.used += 1;
            self.slots.insert(key, (slot, uses));
            self.inside(node, at, steps);
            self.made.insert(key, node.clone());
            let inner = std::mem::replace(node, Node::Nothing(span));
            *node = Node::Shared(Box::new(Shared { slot, uses, inner, span }));
            return;
        }
        self.inside(node, at, steps);
    }

    fn inside(&mut self, node: &mut Node, at: usize, steps: usize) {
        let steps = if sets_steps(node) { at } else { steps };
        let children = node.children_mut();
        let places = places(at, children.len(), &self.seen);
        for (child, at) in children.into_iter().zip(places).rev() {
            self.wrap(child, at, steps);
        }
    }
}

/// Bytes that are the same for nodes that say the same, apart from their children.
#[derive(Default)]
struct Said(Vec<u8>);

impl Said {
    fn number(&mut self, number: i64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.0.extend_from_slice(&text.len().to_le_bytes());
        self.0.extend_from_slice(text);
    }

    fn maybe(&mut self, number: Option<i64>) {
        self.0.push(u8::from(number.is_some()));
        self.number(number.unwrap_or(0));
    }

    fn texts(&mut self, all: &[String]) {
        self.number(i64::try_from(all.len()).unwrap_or(i64::MAX));
        all.iter().for_each(|text| self.text(text.as_bytes()));
    }

    fn selector(&mut self, selector: &Selector) {
        self.text(&selector.select.to_le_bytes());
        self.number(selector.offset_ms);
        self.maybe(selector.at);
        self.text(format!("{:?}", selector.extension).as_bytes());
        self.0.push(u8::from(selector.statistics_only));
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::Number(value, _) => {
                self.text(b"number");
                self.0.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            Node::Text(bytes, _) => {
                self.text(b"text");
                self.text(bytes);
            }
            Node::Instant(selector) => {
                self.text(b"instant");
                self.selector(selector);
            }
            Node::Range(range) => {
                self.text(b"range");
                self.number(range.range_ms);
                self.selector(&range.of);
            }
            Node::Subquery(s) => {
                self.text(b"subquery");
                [s.range_ms, s.step_ms, s.offset_ms].into_iter().for_each(|number| self.number(number));
                self.maybe(s.at);
            }
            Node::Negate(..) => self.text(b"negate"),
            Node::Once(_) => self.text(b"once"),
            Node::Nothing(_) => self.text(b"nothing"),
            Node::Shared(shared) => self.text(&shared.slot.to_le_bytes()),
            Node::Binary(b) => {
                self.text(b.op.as_str().as_bytes());
                let matching = &b.matching;
                self.text(format!("{:?} {} {}", matching.cardinality, matching.on, b.return_bool).as_bytes());
                self.texts(&matching.labels);
                self.texts(&matching.include);
                for fill in [matching.fill_left, matching.fill_right] {
                    self.text(format!("{:?}", fill.map(f64::to_bits)).as_bytes());
                }
            }
            Node::Aggregate(a) => {
                self.text(b"aggregate");
                self.text(a.op.as_str().as_bytes());
                self.0.push(u8::from(a.without));
                self.texts(&a.grouping);
            }
            Node::Call(call) => {
                self.text(b"call");
                self.text(call.func.as_bytes());
                self.number(i64::try_from(call.args.len()).unwrap_or(i64::MAX));
                if let Some(info) = &call.info {
                    self.selector(info);
                    self.texts(&call.args.get(1).map(info_tests).unwrap_or_default());
                }
            }
        }
    }
}

/// The tests in the second argument of `info`, as written.
fn info_tests(node: &Node) -> Vec<String> {
    match node {
        Node::Instant(s) => s.matchers.iter().map(|m| format!("{}{}{}", m.name, m.op.as_str(), m.value)).collect(),
        _ => Vec::new(),
    }
}
