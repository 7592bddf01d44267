//! Matchers: one test on one label.
//!
//! Regular expressions are read by [`crate::pattern`], anchored at both ends, and compiled once with a bound on the
//! compiled size, so that no pattern from outside can take the memory. What can be answered without the automaton (a
//! set of literals, a prefix) is found when compiling: most dashboards send nothing else.

use std::fmt;
use std::sync::Arc;

use regex_automata::meta::Regex;
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::hir::{Hir, HirKind, Look};

use crate::pattern;
pub use crate::pattern::{BadPattern, COMPILED_BYTES_MAX, PATTERN_BYTES_MAX};

/// Most literals kept of an alternation; above, the automaton answers.
const LITERALS_MAX: usize = 4096;

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

impl MatchOp {
    /// As written in PromQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

/// One test on one label. Cheap to clone.
#[derive(Clone)]
pub struct Matcher {
    /// The label's name.
    pub name: Arc<str>,
    /// How to compare.
    pub op: MatchOp,
    /// What to compare with: a value, or a pattern.
    pub value: Arc<str>,
    pattern: Option<Arc<Pattern>>,
}

struct Pattern {
    kind: Kind,
    matches_empty: bool,
}

enum Kind {
    /// Exactly these values, sorted.
    Literals(Vec<String>),
    /// Any value that starts so (`prefix.*`).
    Prefix(String),
    /// Any value that is not empty (`.+`).
    NotEmpty,
    /// Any value (`.*`).
    Any,
    /// The automaton, with the literal every match starts with.
    Automaton { regex: Regex, prefix: String },
}

impl Matcher {
    /// Compiles a matcher.
    ///
    /// # Errors
    /// [`BadPattern`] when a regular expression does not parse or compiles to more than [`COMPILED_BYTES_MAX`].
    pub fn new(name: &str, op: MatchOp, value: &str) -> Result<Self, BadPattern> {
        let pattern = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(Arc::new(Pattern::compile(value)?)),
        };
        Ok(Self { name: name.into(), op, value: value.into(), pattern })
    }

    /// `name="value"`, which cannot fail.
    #[must_use]
    pub fn equal(name: &str, value: &str) -> Self {
        Self { name: name.into(), op: MatchOp::Equal, value: value.into(), pattern: None }
    }

    /// Whether a label of this value passes; an absent label has the value `""`.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match (self.op, &self.pattern) {
            (MatchOp::Equal, _) => *self.value == *value,
            (MatchOp::NotEqual, _) => *self.value != *value,
            (MatchOp::Regex, Some(pattern)) => pattern.matches(value),
            (MatchOp::NotRegex, Some(pattern)) => !pattern.matches(value),
            (MatchOp::Regex | MatchOp::NotRegex, None) => unreachable!("a regex matcher is built with its pattern"),
        }
    }

    /// Whether a series without the label passes.
    #[must_use]
    pub fn matches_empty(&self) -> bool {
        match (self.op, &self.pattern) {
            (MatchOp::Regex, Some(pattern)) => pattern.matches_empty,
            (MatchOp::NotRegex, Some(pattern)) => !pattern.matches_empty,
            _ => self.matches(""),
        }
    }

    /// When only a known set of values can pass (`=` and alternations of literals): that set, sorted. For a negative
    /// matcher, the set of values that cannot pass, see [`Matcher::is_negative`].
    #[must_use]
    pub fn literals(&self) -> Option<Vec<&str>> {
        match (&self.pattern, self.op) {
            (None, _) => Some(vec![&self.value]),
            (Some(pattern), _) => match &pattern.kind {
                Kind::Literals(set) => Some(set.iter().map(String::as_str).collect()),
                _ => None,
            },
        }
    }

    /// What every value the pattern matches starts with; empty when nothing is known.
    #[must_use]
    pub fn prefix(&self) -> &str {
        match self.pattern.as_deref() {
            None => &self.value,
            Some(Pattern { kind: Kind::Prefix(prefix) | Kind::Automaton { prefix, .. }, .. }) => prefix,
            Some(_) => "",
        }
    }

    /// Whether this is `!=` or `!~`.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        matches!(self.op, MatchOp::NotEqual | MatchOp::NotRegex)
    }

    /// Whether every value passes, the empty one too (`=~".*"`).
    #[must_use]
    pub fn matches_all(&self) -> bool {
        self.op == MatchOp::Regex && matches!(self.pattern.as_deref(), Some(Pattern { kind: Kind::Any, .. }))
    }
}

impl Pattern {
    fn compile(text: &str) -> Result<Self, BadPattern> {
        let hir = pattern::parse(text)?.hir;
        if text.contains(r"\Q") {
            // Upstream compiles the expression within a group, which a quotation without an end swallows the end of.
            pattern::parse(&format!("^(?s:{text})$"))?;
        }
        let kind = match Self::simple(&hir) {
            Some(kind) => kind,
            None => Self::automaton(hir)?,
        };
        let mut pattern = Self { kind, matches_empty: false };
        pattern.matches_empty = pattern.matches("");
        Ok(pattern)
    }

    fn simple(hir: &Hir) -> Option<Kind> {
        if is_dot_star(hir) {
            return Some(Kind::Any);
        }
        if is_dot_repeat(hir, 1) {
            return Some(Kind::NotEmpty);
        }
        if let HirKind::Concat(parts) = hir.kind()
            && let [first, rest] = parts.as_slice()
            && let HirKind::Literal(literal) = first.kind()
            && is_dot_star(rest)
        {
            return Some(Kind::Prefix(String::from_utf8(literal.0.to_vec()).ok()?));
        }
        let mut set = expand(hir)?;
        set.sort_unstable();
        set.dedup();
        Some(Kind::Literals(set))
    }

    fn automaton(hir: Hir) -> Result<Kind, BadPattern> {
        let prefix = match hir.kind() {
            HirKind::Concat(parts) => match parts.first().map(Hir::kind) {
                Some(HirKind::Literal(literal)) => String::from_utf8(literal.0.to_vec()).unwrap_or_default(),
                _ => String::new(),
            },
            _ => String::new(),
        };
        let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        // Nobody asks where a group is, and the memory for thousands of them would be taken all the same.
        let regex = pattern::compile(&whole, Regex::config().which_captures(WhichCaptures::None))?;
        Ok(Kind::Automaton { regex, prefix })
    }

    fn matches(&self, value: &str) -> bool {
        match &self.kind {
            Kind::Literals(set) => set.binary_search_by(|have| have.as_str().cmp(value)).is_ok(),
            Kind::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Kind::NotEmpty => !value.is_empty(),
            Kind::Any => true,
            Kind::Automaton { regex, prefix } => has_prefix(value, prefix) && regex.is_match(value),
        }
    }
}

/// `starts_with`, but an empty prefix is not compared: its pointer leads nowhere, and vector code that masks such a load
/// out is a hundred times slower for it.
#[inline]
#[must_use]
pub fn has_prefix(value: &str, prefix: &str) -> bool {
    prefix.is_empty() || value.starts_with(prefix)
}

/// The values a pattern stands for, when they are few and plain: `a|b`, `foo(bar|baz)`, `x[12]`.
fn expand(hir: &Hir) -> Option<Vec<String>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(literal) => Some(vec![String::from_utf8(literal.0.to_vec()).ok()?]),
        HirKind::Capture(capture) => expand(&capture.sub),
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(expand(part)?);
                if all.len() > LITERALS_MAX {
                    return None;
                }
            }
            Some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![String::new()];
            for part in parts {
                let tails = expand(part)?;
                if all.len().saturating_mul(tails.len()) > LITERALS_MAX {
                    return None;
                }
                all = all.iter().flat_map(|head| tails.iter().map(move |tail| format!("{head}{tail}"))).collect();
            }
            Some(all)
        }
        HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => {
            let mut all = Vec::new();
            for range in class.ranges() {
                if u32::from(range.end()) - u32::from(range.start()) > 32 || all.len() > 64 {
                    return None;
                }
                all.extend((range.start()..=range.end()).map(String::from));
            }
            Some(all)
        }
        HirKind::Repetition(rep) if rep.min == 0 && rep.max == Some(1) => {
            let mut all = expand(&rep.sub)?;
            all.push(String::new());
            Some(all)
        }
        _ => None,
    }
}

fn is_dot_star(hir: &Hir) -> bool {
    is_dot_repeat(hir, 0)
}

fn is_dot_repeat(hir: &Hir, min: u32) -> bool {
    match hir.kind() {
        HirKind::Repetition(rep) => rep.min == min && rep.max.is_none() && is_any_char(&rep.sub),
        HirKind::Capture(capture) => is_dot_repeat(&capture.sub, min),
        _ => false,
    }
}

fn is_any_char(hir: &Hir) -> bool {
    matches!(hir.kind(), HirKind::Class(regex_syntax::hir::Class::Unicode(class))
        if matches!(class.ranges(), [all] if all.start() == '\0' && all.end() == char::MAX))
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.op == other.op && self.value == other.value
    }
}

impl Eq for Matcher {}

impl std::hash::Hash for Matcher {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.name, self.op, &self.value).hash(state);
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:?}", self.name, self.op.as_str(), self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn re(pattern: &str) -> Matcher {
        Matcher::new("l", MatchOp::Regex, pattern).unwrap()
    }

    #[test]
    fn patterns_are_anchored_and_dot_takes_newlines() {
        assert!(re("a.c").matches("a\nc") && !re("a.c").matches("xabc") && !re("a|b").matches("ab"));
        assert!(re("foo.*").matches("foo\nbar") && re(".+").matches("\n") && !re(".+").matches(""));
        assert!(re("").matches_empty() && re(".*").matches_all() && !re(".+").matches_empty());
    }

    #[test]
    fn literals_are_found() {
        assert_eq!(re("b|a").literals(), Some(vec!["a", "b"]));
        assert_eq!(re("x(1|2)?").literals(), Some(vec!["x", "x1", "x2"]));
        assert_eq!(re("n[01]").literals(), Some(vec!["n0", "n1"]));
        assert_eq!(re("(?i)ab").literals().map(|l| l.len()), Some(4));
        assert_eq!(re("a.*").literals(), None);
        assert_eq!(re("abc.*").prefix(), "abc");
        assert_eq!(re("abc.*d").prefix(), "abc");
    }

    #[test]
    fn short_cuts_hold_in_the_syntax_of_go() {
        assert_eq!(re("{a}|b{,2}").literals(), Some(vec!["b{,2}", "{a}"]));
        assert_eq!(re(r"\Qa.*\E|\101").literals(), Some(vec!["A", "a.*"]));
        assert_eq!(re("{.*").prefix(), "{");
        assert!(re("{.*").matches("{job}") && !re("{.*").matches("job}"));
        assert!(re("(?s).*").matches_all() && !re("(?-s).*").matches_all() && !re("(?-s).*").matches("\n"));
        assert!(re(r"[\w\W]*").matches_all() && !re(r"\w+").matches("é") && re(r"\bé").matches_empty().eq(&false));
        let quoted = Matcher::new("l", MatchOp::Regex, r"\Qa").unwrap_err().reason;
        assert_eq!(quoted, r"error parsing regexp: missing closing ): `^(?s:\Qa)$`");
    }

    #[test]
    fn regex_bombs_are_refused() {
        for bomb in ["((a{0,1000}){0,1000}){0,1000}", "(", "a{99999999}", "(?:(?:(?:x{200}){200}){200})"] {
            assert!(Matcher::new("l", MatchOp::Regex, bomb).is_err(), "{bomb}");
        }
    }

    proptest! {
        #[test]
        fn short_cuts_agree_with_the_automaton(pattern in "(a|b|c|\\.|\\(a\\|b\\)|\\.\\*|\\[ab\\]|a\\?|x\\+){0,5}", value in "[abcx]{0,5}") {
            let Ok(matcher) = Matcher::new("l", MatchOp::Regex, &pattern) else { return Ok(()) };
            let plain = Regex::new(&format!("(?s)^(?:{pattern})$")).unwrap();
            prop_assert_eq!(matcher.matches(&value), plain.is_match(value.as_str()), "{} on {}", pattern, value);
            if !matcher.prefix().is_empty() && plain.is_match(value.as_str()) {
                prop_assert!(value.starts_with(matcher.prefix()));
            }
        }
    }
}
