//! Sets of characters in brackets, escapes, and the folding of case.

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};

use super::{Mistake, Parser, Result, unicode};

/// Characters that have another case lie between these.
const FOLD: (u32, u32) = (0x41, 0x1e943);

/// Ranges of a set as they are read. What is negated within is folded before that, so it is kept apart.
#[derive(Default)]
struct Parts {
    plain: Vec<ClassUnicodeRange>,
    done: Vec<ClassUnicodeRange>,
}

impl Parser<'_> {
    /// `[…]`, at the bracket.
    pub(super) fn class(&mut self) -> Result<ClassUnicode> {
        let start = self.at;
        self.at += 1;
        let negated = self.accept("^");
        let mut parts = Parts::default();
        let mut first = true;
        while first || !self.rest().starts_with(']') {
            first = false;
            if let Some((set, negated)) = self.class_group()? {
                self.add_group(&mut parts, set, negated)?;
            } else {
                let (low, high) = self.range(start)?;
                self.charge(1)?;
                add_range(&mut parts.plain, low, high);
            }
        }
        self.at += 1;
        let mut set = self.fold(ClassUnicode::new(parts.plain))?;
        set.union(&ClassUnicode::new(parts.done));
        if negated {
            set.negate();
        }
        self.charge(set.ranges().len())?;
        Ok(set)
    }

    /// `a` or `a-z`.
    fn range(&mut self, class: usize) -> Result<(u32, u32)> {
        let start = self.at;
        let low = self.class_char(class)?;
        let rest = self.rest();
        if !rest.starts_with('-') || rest.len() < 2 || rest.starts_with("-]") {
            return Ok((low, low));
        }
        self.at += 1;
        let high = self.class_char(class)?;
        if high < low { Err(self.mistake("invalid character class range", start)) } else { Ok((low, high)) }
    }

    fn class_char(&mut self, class: usize) -> Result<u32> {
        if self.rest().starts_with('\\') {
            return self.escape();
        }
        match self.next() {
            Some(c) => Ok(u32::from(c)),
            None => Err(Mistake::new("missing closing ]", self.tail(class))),
        }
    }

    fn add_group(&mut self, parts: &mut Parts, set: ClassUnicode, negated: bool) -> Result<()> {
        self.charge(set.ranges().len())?;
        if negated {
            let mut set = self.fold(set)?;
            set.negate();
            parts.done.extend(set.ranges());
        } else {
            parts.plain.extend(set.ranges());
        }
        Ok(())
    }

    /// A named set inside brackets, and whether it is negated; nothing is taken when none is here.
    fn class_group(&mut self) -> Result<Option<(ClassUnicode, bool)>> {
        let named = if self.posix_end { self.rest().strip_prefix("[:") } else { None };
        if let Some(tail) = named {
            let Some(length) = tail.find(":]") else {
                self.posix_end = false;
                return Ok(None);
            };
            let start = self.at;
            self.at += length + 4;
            let name = tail.get(..length).unwrap_or_default();
            let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
            return match unicode::posix(name) {
                Some(set) => Ok(Some((set, negated))),
                None => Err(self.mistake("invalid character class range", start)),
            };
        }
        self.group_escape()
    }

    /// `\pL`, `\P{Greek}`, `\d`, `\W` as the set to be repeated or joined, folded and negated.
    pub(super) fn set_escape(&mut self) -> Result<Option<ClassUnicode>> {
        let Some((set, negated)) = self.group_escape()? else { return Ok(None) };
        self.charge(set.ranges().len())?;
        let mut set = self.fold(set)?;
        if negated {
            set.negate();
        }
        self.charge(set.ranges().len())?;
        Ok(Some(set))
    }

    fn group_escape(&mut self) -> Result<Option<(ClassUnicode, bool)>> {
        let mut chars = self.rest().chars();
        let (Some('\\'), Some(letter)) = (chars.next(), chars.next()) else { return Ok(None) };
        if matches!(letter, 'p' | 'P') {
            return self.unicode_class(letter == 'P').map(Some);
        }
        let Some(set) = unicode::perl(letter.to_ascii_lowercase()) else { return Ok(None) };
        self.at += 2;
        Ok(Some((set, letter.is_ascii_uppercase())))
    }

    /// At `\p` or `\P`.
    fn unicode_class(&mut self, mut negated: bool) -> Result<(ClassUnicode, bool)> {
        let start = self.at;
        self.at += 2;
        let mut name = match self.next() {
            Some('{') => {
                let Some(length) = self.rest().find('}') else {
                    return Err(Mistake::new("invalid character class range", self.tail(start)));
                };
                let name = self.rest().get(..length).unwrap_or_default();
                self.at += length + 1;
                name
            }
            _ => self.part(start + 2),
        };
        if let Some(rest) = name.strip_prefix('^') {
            (name, negated) = (rest, !negated);
        }
        match unicode::named(name) {
            Some(set) => Ok((set, negated)),
            None => Err(self.mistake("invalid character class range", start)),
        }
    }

    /// One character written as an escape, at the backslash. It may be half of a pair, which no text holds.
    pub(super) fn escape(&mut self) -> Result<u32> {
        let start = self.at;
        self.at += 1;
        let Some(c) = self.next() else {
            return Err(Mistake::new("trailing backslash at end of expression", ""));
        };
        let value = match c {
            '1'..='7' if !self.rest().starts_with(|c: char| c.is_digit(8)) => None,
            '0'..='7' => {
                let mut value = c.to_digit(8);
                for _ in 0..2 {
                    let Some(digit) = self.rest().chars().next().and_then(|c| c.to_digit(8)) else { break };
                    self.at += 1;
                    value = value.map(|value| value * 8 + digit);
                }
                value
            }
            'x' => self.hexadecimal(),
            'a' => Some(0x07),
            'f' => Some(0x0c),
            'n' => Some(0x0a),
            'r' => Some(0x0d),
            't' => Some(0x09),
            'v' => Some(0x0b),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(u32::from(c)),
            _ => None,
        };
        value.ok_or_else(|| self.mistake("invalid escape sequence", start))
    }

    /// After `\x`.
    fn hexadecimal(&mut self) -> Option<u32> {
        let first = self.next()?;
        if first != '{' {
            let second = self.next();
            return Some(first.to_digit(16)? * 16 + second?.to_digit(16)?);
        }
        let mut value = None;
        loop {
            match self.next()? {
                '}' => return value,
                c => {
                    let next = value.unwrap_or(0) * 16 + c.to_digit(16)?;
                    value = Some(next).filter(|&next| next <= u32::from(char::MAX));
                    value?;
                }
            }
        }
    }

    /// The set with every other case of its characters, where case is not to matter.
    pub(super) fn fold(&mut self, mut set: ClassUnicode) -> Result<ClassUnicode> {
        if !self.flags.fold {
            return Ok(set);
        }
        let mut cased = Vec::new();
        let mut count = 0;
        for range in set.ranges() {
            let (low, high) = (u32::from(range.start()).max(FOLD.0), u32::from(range.end()).min(FOLD.1));
            // A range that holds every character with a case holds their other cases.
            if low <= high && (low, high) != FOLD {
                count += usize::try_from(high - low).unwrap_or(usize::MAX);
                add_range(&mut cased, low, high);
            }
        }
        self.charge_fold(count)?;
        let mut cased = ClassUnicode::new(cased);
        cased.case_fold_simple();
        set.union(&cased);
        Ok(set)
    }
}

/// Adds the characters from `low` to `high`, without the halves of pairs between `U+D7FF` and `U+E000`.
fn add_range(ranges: &mut Vec<ClassUnicodeRange>, low: u32, high: u32) {
    let is_half = |c: u32| (0xd800..0xe000).contains(&c);
    let low = if is_half(low) { 0xe000 } else { low };
    let high = if is_half(high) { 0xd7ff } else { high };
    if low <= high
        && let (Some(low), Some(high)) = (char::from_u32(low), char::from_u32(high))
    {
        ranges.push(ClassUnicodeRange::new(low, high));
    }
}
