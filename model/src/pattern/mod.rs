//! Regular expressions as Prometheus means them, which is as Go does: RE2 with its Perl flags, `.` taking line ends.
//!
//! Without this, an expression copied from a dashboard would be refused (`{.*`, `\Q…\E`), or worse, would select other
//! series than upstream: `\d`, `\w` and `\b` are ASCII in Go, `[a&&b]` is four characters. So the text is read by
//! Go's rules and told in Go's words what is wrong with it, and goes to the automaton as a tree, not as text of
//! another dialect.
//!
//! Everything is bounded: bytes of the text, nesting, repetitions (as in Go), ranges of character sets and the work of
//! folding case, and in [`Grouped`] the memory a match takes. What differs from Go: nesting ends at [`DEPTH_MAX`] and
//! not at 1000; sets with names follow a Unicode that may be newer; scripts of two words (`\p{Old_Italic}`) are taken
//! as Go did before 1.25; half a surrogate (`\x{d800}`) matches nothing, where Go takes it for `U+FFFD` when the
//! expression starts with it as text.
//!
//! Source: Go `regexp/syntax` (doc.go, parse.go).

mod class;
#[cfg(test)]
mod tests;
mod unicode;

use regex_automata::meta::{Config, Regex};
use regex_syntax::hir::{Capture, Class, ClassUnicode, ClassUnicodeRange, Dot, Hir, Look, Repetition};

/// Longest regular expression taken, in bytes.
pub const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Largest compiled automaton, in bytes.
pub const COMPILED_BYTES_MAX: usize = 16 << 20;
/// Deepest nesting of groups, branches, sequences and repetitions, each counted: the compiler calls itself for each.
pub const DEPTH_MAX: usize = 200;
/// Most copies repetitions may make of what they repeat, nested ones multiplied.
const REPEAT_MAX: u32 = 1000;
/// Most ranges of character sets in one expression.
const RANGES_MAX: usize = 1 << 20;
/// Most characters whose other cases are looked up for one expression.
const FOLDS_MAX: usize = 16 << 20;
/// Most memory for the positions of groups while one value is matched, in bytes.
const SLOT_BYTES_MAX: usize = 64 << 20;

/// A pattern that does not compile, or is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadPattern {
    /// What is wrong, in one line.
    pub reason: String,
}

/// An expression that was read.
#[derive(Clone, Debug)]
pub struct Expression {
    /// What it matches, not anchored.
    pub hir: Hir,
    /// The names of its groups by their number; the whole, number 0, has none.
    pub groups: Vec<Option<String>>,
}

/// Reads an expression.
///
/// # Errors
/// [`BadPattern`] in Go's words when it is none, or is too large.
pub fn parse(text: &str) -> Result<Expression, BadPattern> {
    if text.len() > PATTERN_BYTES_MAX {
        let reason = format!("regular expression of {} bytes is longer than {PATTERN_BYTES_MAX}", text.len());
        return Err(BadPattern { reason });
    }
    let parser = Parser {
        whole: text,
        at: 0,
        flags: Flags { fold: false, many_lines: false, dot_all: true, lazy: false },
        frames: Vec::new(),
        top: Frame::default(),
        groups: vec![None],
        posix_end: true,
        ranges: 0,
        folds: 0,
    };
    parser
        .run()
        .map_err(|Mistake { what, part }| BadPattern { reason: format!("error parsing regexp: {what}: `{part}`") })
}

/// Compiles what was read, with the bound on its size.
pub(crate) fn compile(hir: &Hir, config: Config) -> Result<Regex, BadPattern> {
    let config = config
        .nfa_size_limit(Some(COMPILED_BYTES_MAX))
        .onepass_size_limit(Some(1 << 20))
        .hybrid_cache_capacity(2 << 20);
    Regex::builder().configure(config).build_from_hir(hir).map_err(|e| {
        let reason = match e.size_limit() {
            Some(limit) => format!("expression compiles to more than {limit} bytes"),
            None => e.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        BadPattern { reason: format!("error parsing regexp: {reason}") }
    })
}

/// An expression that matches whole values and tells what its groups took.
#[derive(Clone, Debug)]
pub struct Grouped {
    regex: Regex,
    names: Vec<Option<String>>,
}

impl Grouped {
    /// Compiles `text` anchored at both ends, in the way `label_replace` does: `^(?s:text)$`.
    ///
    /// # Errors
    /// [`BadPattern`] when it is no expression or takes too much memory.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        let Expression { hir, groups } = parse(&format!("(?-s)^(?s:{text})$"))?;
        let regex = compile(&hir, Regex::config())?;
        // Each state of the automaton may keep two positions for each group.
        if regex.memory_usage().saturating_mul(groups.len()) / 2 > SLOT_BYTES_MAX {
            return Err(BadPattern { reason: "error parsing regexp: expression has too many groups".into() });
        }
        Ok(Self { regex, names: groups })
    }

    /// Bytes of the automaton. A match takes up to so much time for each byte of the value, whatever the pattern.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.regex.memory_usage()
    }

    /// What the groups took of `value`, or `None` where it does not match.
    #[must_use]
    pub fn groups<'a>(&'a self, value: &'a str) -> Option<Groups<'a>> {
        let mut captures = self.regex.create_captures();
        self.regex.captures(value, &mut captures);
        captures.is_match().then_some(Groups { value, names: &self.names, captures })
    }
}

/// What groups took of a value.
#[derive(Clone, Debug)]
pub struct Groups<'a> {
    value: &'a str,
    names: &'a [Option<String>],
    captures: regex_automata::util::captures::Captures,
}

impl<'a> Groups<'a> {
    /// The group of this number; 0 is the whole.
    #[must_use]
    pub fn number(&self, number: usize) -> Option<&'a str> {
        self.captures.get_group(number).and_then(|span| self.value.get(span.range()))
    }

    /// The first group of this name that took part; names may be there twice.
    #[must_use]
    pub fn name(&self, name: &str) -> Option<&'a str> {
        let mut numbers = (0..).zip(self.names).filter(|(_, have)| have.as_deref() == Some(name));
        numbers.find_map(|(number, _)| self.number(number))
    }
}

/// What is wrong, and with which part of the text.
struct Mistake {
    what: &'static str,
    part: String,
}

type Result<T, E = Mistake> = std::result::Result<T, E>;

impl Mistake {
    fn new(what: &'static str, part: &str) -> Self {
        Self { what, part: part.to_owned() }
    }
}

#[derive(Clone, Copy)]
struct Flags {
    /// `i`: case does not matter.
    fold: bool,
    /// `m`: `^` and `$` match at line ends.
    many_lines: bool,
    /// `s`: `.` matches line ends.
    dot_all: bool,
    /// `U`: `a*` prefers less, `a*?` more.
    lazy: bool,
}

/// One thing that can be repeated, with its depth and the copies repetitions make within.
struct Node {
    term: Term,
    depth: usize,
    copies: u32,
}

enum Term {
    /// A character, apart from the tree so that a run of them becomes one literal.
    Char(char),
    Tree(Hir),
}

/// What is open: a group, or the whole.
#[derive(Default)]
struct Frame {
    /// Branches that a `|` ended.
    branches: Vec<Hir>,
    /// The branch being read.
    nodes: Vec<Node>,
    depth: usize,
    copies: u32,
    /// Its number when it captures.
    number: Option<u32>,
    /// The flags to go back to after it.
    flags: Option<Flags>,
}

impl Frame {
    fn end_branch(&mut self) {
        let mut depth = 0;
        let mut parts = Vec::new();
        let mut run = String::new();
        for node in self.nodes.drain(..) {
            depth = depth.max(node.depth);
            self.copies = self.copies.max(node.copies);
            match node.term {
                Term::Char(c) => run.push(c),
                Term::Tree(hir) => {
                    if !run.is_empty() {
                        parts.push(Hir::literal(std::mem::take(&mut run).into_bytes()));
                    }
                    parts.push(hir);
                }
            }
        }
        if !run.is_empty() {
            parts.push(Hir::literal(run.into_bytes()));
        }
        self.depth = self.depth.max(depth + usize::from(parts.len() > 1));
        self.branches.push(Hir::concat(parts));
    }

    /// The group as one node.
    fn close(mut self) -> Node {
        self.end_branch();
        let depth = self.depth + 1 + usize::from(self.branches.len() > 1);
        let mut hir = Hir::alternation(self.branches);
        if let Some(index) = self.number {
            hir = Hir::capture(Capture { index, name: None, sub: Box::new(hir) });
        }
        Node { term: Term::Tree(hir), depth, copies: self.copies.max(1) }
    }
}

struct Parser<'a> {
    whole: &'a str,
    at: usize,
    flags: Flags,
    /// Frames around `top`.
    frames: Vec<Frame>,
    top: Frame,
    groups: Vec<Option<String>>,
    /// Whether a `:]` may still follow; once it is known not to, it is not searched again.
    posix_end: bool,
    ranges: usize,
    folds: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.tail(self.at)
    }

    fn tail(&self, start: usize) -> &'a str {
        self.whole.get(start..).unwrap_or_default()
    }

    fn part(&self, start: usize) -> &'a str {
        self.whole.get(start..self.at).unwrap_or_default()
    }

    fn mistake(&self, what: &'static str, start: usize) -> Mistake {
        Mistake::new(what, self.part(start))
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn accept(&mut self, text: &str) -> bool {
        let yes = self.rest().starts_with(text);
        if yes {
            self.at += text.len();
        }
        yes
    }

    fn charge(&mut self, ranges: usize) -> Result<()> {
        self.ranges = self.ranges.saturating_add(ranges);
        if self.ranges > RANGES_MAX { Err(Mistake::new("expression too large", self.whole)) } else { Ok(()) }
    }

    fn charge_fold(&mut self, chars: usize) -> Result<()> {
        self.folds = self.folds.saturating_add(chars);
        if self.folds > FOLDS_MAX { Err(Mistake::new("expression too large", self.whole)) } else { Ok(()) }
    }

    fn run(mut self) -> Result<Expression> {
        // Where the repetition right before began: a second one there would be nested.
        let mut repeat_at = None;
        while let Some(c) = self.rest().chars().next() {
            let start = self.at;
            let counts = match c {
                '*' => Some((0, None)),
                '+' => Some((1, None)),
                '?' => Some((0, Some(1))),
                '{' => self.counts()?,
                _ => None,
            };
            if let Some((min, max)) = counts {
                if c != '{' {
                    self.at += 1;
                }
                self.repeat(start, repeat_at, min, max)?;
                repeat_at = Some(start);
            } else {
                repeat_at = None;
                self.term(c)?;
            }
        }
        if !self.frames.is_empty() {
            return Err(Mistake::new("missing closing )", self.whole));
        }
        let whole = self.top.close();
        let hir = match whole.term {
            Term::Tree(hir) => hir,
            Term::Char(c) => Hir::literal(c.to_string().into_bytes()),
        };
        Ok(Expression { hir, groups: self.groups })
    }

    /// Anything but a repetition.
    fn term(&mut self, c: char) -> Result<()> {
        match c {
            '\\' => return self.backslash(),
            '[' => {
                let set = self.class()?;
                self.push(Hir::class(Class::Unicode(set)));
                return Ok(());
            }
            '(' if self.rest().starts_with("(?") => return self.flags(),
            _ => self.at += c.len_utf8(),
        }
        match c {
            '(' => {
                let number = self.number(None);
                self.open(Some(number), self.flags)?;
            }
            '|' => self.top.end_branch(),
            ')' => {
                let outer = self.frames.pop().ok_or_else(|| Mistake::new("unexpected )", self.whole))?;
                let group = std::mem::replace(&mut self.top, outer);
                self.flags = group.flags.unwrap_or(self.flags);
                self.add(group.close())?;
            }
            '^' => self.push(Hir::look(if self.flags.many_lines { Look::StartLF } else { Look::Start })),
            '$' => self.push(Hir::look(if self.flags.many_lines { Look::EndLF } else { Look::End })),
            '.' => self.push(Hir::dot(if self.flags.dot_all { Dot::AnyChar } else { Dot::AnyCharExceptLF })),
            c => self.literal(c)?,
        }
        Ok(())
    }

    /// At a backslash.
    fn backslash(&mut self) -> Result<()> {
        let start = self.at;
        let look = match self.tail(start + 1).chars().next() {
            Some('A') => Look::Start,
            Some('z') => Look::End,
            Some('b') => Look::WordAscii,
            Some('B') => Look::WordAsciiNegate,
            Some('C') => {
                self.at += 2;
                return Err(self.mistake("invalid escape sequence", start));
            }
            Some('Q') => {
                self.at += 2;
                let (quoted, end) = match self.rest().split_once("\\E") {
                    Some((quoted, _)) => (quoted, 2),
                    None => (self.rest(), 0),
                };
                self.at += quoted.len() + end;
                return quoted.chars().try_for_each(|c| self.literal(c));
            }
            _ => {
                if let Some(set) = self.set_escape()? {
                    self.push(Hir::class(Class::Unicode(set)));
                    return Ok(());
                }
                let value = self.escape()?;
                match char::from_u32(value) {
                    Some(c) => self.literal(c)?,
                    None => self.push(Hir::fail()),
                }
                return Ok(());
            }
        };
        self.at += 2;
        self.push(Hir::look(look));
        Ok(())
    }

    fn literal(&mut self, c: char) -> Result<()> {
        let mut term = Term::Char(c);
        if self.flags.fold {
            let set = self.fold(ClassUnicode::new([ClassUnicodeRange::new(c, c)]))?;
            if set.literal().is_none() {
                term = Term::Tree(Hir::class(Class::Unicode(set)));
            }
        }
        self.add(Node { term, depth: 0, copies: 1 })
    }

    fn push(&mut self, hir: Hir) {
        self.top.nodes.push(Node { term: Term::Tree(hir), depth: 0, copies: 1 });
    }

    fn add(&mut self, node: Node) -> Result<()> {
        if node.depth > DEPTH_MAX {
            return Err(Mistake::new("expression nests too deeply", self.whole));
        }
        self.top.nodes.push(node);
        Ok(())
    }

    fn number(&mut self, name: Option<&str>) -> u32 {
        let number = self.groups.len();
        self.groups.push(name.map(str::to_owned));
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Opens a group, inside of which `flags` hold.
    fn open(&mut self, number: Option<u32>, flags: Flags) -> Result<()> {
        if self.frames.len() >= DEPTH_MAX {
            return Err(Mistake::new("expression nests too deeply", self.whole));
        }
        let group = Frame { number, flags: Some(self.flags), ..Frame::default() };
        self.frames.push(std::mem::replace(&mut self.top, group));
        self.flags = flags;
        Ok(())
    }

    /// After a repetition that began at `start`.
    fn repeat(&mut self, start: usize, before: Option<usize>, min: u32, max: Option<u32>) -> Result<()> {
        let greedy = self.accept("?") == self.flags.lazy;
        if let Some(before) = before {
            return Err(self.mistake("invalid nested repetition operator", before));
        }
        let Some(node) = self.top.nodes.pop() else {
            return Err(self.mistake("missing argument to repetition operator", start));
        };
        let copies = match max.unwrap_or(min) {
            0 if max.is_some() => 1,
            factor => node.copies.saturating_mul(factor.max(1)),
        };
        if (min >= 2 || max.is_some_and(|max| max >= 2)) && copies > REPEAT_MAX {
            return Err(self.mistake("invalid repeat count", start));
        }
        let sub = Box::new(match node.term {
            Term::Char(c) => Hir::literal(c.to_string().into_bytes()),
            Term::Tree(hir) => hir,
        });
        let hir = Hir::repetition(Repetition { min, max, greedy, sub });
        self.add(Node { term: Term::Tree(hir), depth: node.depth + 1, copies })
    }

    /// At `{`: takes `{n}`, `{n,}` or `{n,m}`; anything else stands for itself, and nothing is taken.
    fn counts(&mut self) -> Result<Option<(u32, Option<u32>)>> {
        let start = self.at;
        let tail = self.tail(start + 1);
        let length = tail.bytes().take_while(|&b| b == b',' || b.is_ascii_digit()).count();
        let (inside, end) = tail.split_at(length);
        if !end.starts_with('}') {
            return Ok(None);
        }
        let (low, high) = match inside.split_once(',') {
            Some((low, high)) => (low, Some(high).filter(|high| !high.is_empty())),
            None => (inside, Some(inside)),
        };
        let is_count = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
        };
        if !is_count(low) || high.is_some_and(|high| !is_count(high)) {
            return Ok(None);
        }
        self.at += inside.len() + 2;
        let size = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
        let (low, high) = (size(low), high.map(size));
        if low > REPEAT_MAX || high.is_some_and(|high| high > REPEAT_MAX || high < low) {
            return Err(self.mistake("invalid repeat count", start));
        }
        Ok(Some((low, high)))
    }

    /// At `(?`: flags, a group without a number, or one with a name.
    fn flags(&mut self) -> Result<()> {
        let (start, tail) = (self.at, self.rest());
        let named = [("(?P<", 4), ("(?<", 3)].iter().find(|(open, size)| tail.starts_with(open) && tail.len() > *size);
        if let Some(&(_, size)) = named {
            let Some(length) = tail.find('>') else { return Err(Mistake::new("invalid named capture", tail)) };
            self.at += length + 1;
            let name = tail.get(size..length).unwrap_or_default();
            if name.is_empty() || !name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) {
                return Err(self.mistake("invalid named capture", start));
            }
            let number = self.number(Some(name));
            return self.open(Some(number), self.flags);
        }
        self.at += 2;
        let mut flags = self.flags;
        let (mut on, mut seen) = (true, false);
        while let Some(c) = self.next() {
            let flag = match c {
                'i' => &mut flags.fold,
                'm' => &mut flags.many_lines,
                's' => &mut flags.dot_all,
                'U' => &mut flags.lazy,
                '-' if on => {
                    (on, seen) = (false, false);
                    continue;
                }
                ':' if on || seen => return self.open(None, flags),
                ')' if on || seen => {
                    self.flags = flags;
                    return Ok(());
                }
                _ => break,
            };
            *flag = on;
            seen = true;
        }
        Err(self.mistake("invalid or unsupported Perl syntax", start))
    }
}
