//! Names what is wrong with a regular expression in the words of Prometheus, which are Go's.
//!
//! The matcher has its own parser with its own words; this one is asked only after that has refused, and only looks
//! for the first mistake. It yields none where Go would see none.
//!
//! Source: Go `regexp/syntax/parse.go`.

/// Largest count of a repetition.
const REPEAT_MAX: u32 = 1000;

type Found = Result<(), (&'static str, String)>;

/// `error parsing regexp: missing closing ): …`, or `None` when Go would take the pattern.
pub(super) fn describe(pattern: &str) -> Option<String> {
    let mut scan = Scan { whole: pattern, at: 0, open: 0, repeatable: false, repeat_at: None };
    let (what, part) = scan.run().err()?;
    Some(format!("error parsing regexp: {what}: `{part}`"))
}

struct Scan<'a> {
    whole: &'a str,
    at: usize,
    /// Groups that are open.
    open: u32,
    /// Whether something stands before that can be repeated.
    repeatable: bool,
    /// Where the repetition right before starts.
    repeat_at: Option<usize>,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        self.whole.get(self.at..).unwrap_or_default()
    }

    fn part(&self, start: usize) -> String {
        self.whole.get(start..self.at).unwrap_or_default().into()
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

    fn run(&mut self) -> Found {
        loop {
            let start = self.at;
            let Some(c) = self.next() else { break };
            match c {
                '*' | '+' | '?' => {
                    self.repeat(start)?;
                    continue;
                }
                '{' if self.counts(start)? => {
                    self.repeat(start)?;
                    continue;
                }
                '(' if self.accept("?") => self.flags(start)?,
                '(' => {
                    self.open += 1;
                    self.repeatable = false;
                }
                '|' => self.repeatable = false,
                ')' => {
                    self.open = self.open.checked_sub(1).ok_or(("unexpected )", self.whole.to_owned()))?;
                    self.repeatable = true;
                }
                '[' => self.class(start)?,
                '\\' => {
                    self.escape(start, false)?;
                    self.repeatable = true;
                }
                _ => self.repeatable = true,
            }
            self.repeat_at = None;
        }
        if self.open > 0 { Err(("missing closing )", self.whole.to_owned())) } else { Ok(()) }
    }

    /// After `*`, `+`, `?` or `{n,m}`, which began at `start`.
    fn repeat(&mut self, start: usize) -> Found {
        let end = self.at;
        self.accept("?");
        if let Some(before) = self.repeat_at {
            return Err(("invalid nested repetition operator", self.part(before)));
        }
        if !self.repeatable {
            let part = self.whole.get(start..self.at.max(end)).unwrap_or_default();
            return Err(("missing argument to repetition operator", part.into()));
        }
        self.repeat_at = Some(start);
        Ok(())
    }

    /// After `{`: whether a count follows; otherwise the brace stands for itself, and nothing is taken.
    fn counts(&mut self, start: usize) -> Result<bool, (&'static str, String)> {
        let Some((inside, _)) = self.rest().split_once('}') else { return Ok(false) };
        let (low, high) = match inside.split_once(',') {
            Some((low, high)) => (low, Some(high).filter(|high| !high.is_empty())),
            None => (inside, Some(inside)),
        };
        let is_count = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))
        };
        if !is_count(low) || high.is_some_and(|high| !is_count(high)) {
            return Ok(false);
        }
        self.at += inside.len() + 1;
        let size = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
        let (low, high) = (size(low), high.map(size));
        if low > REPEAT_MAX || high.is_some_and(|high| high > REPEAT_MAX || high < low) {
            return Err(("invalid repeat count", self.part(start)));
        }
        Ok(true)
    }

    /// After `(?`.
    fn flags(&mut self, start: usize) -> Found {
        let tail = self.whole.get(start..).unwrap_or_default();
        if tail.starts_with("(?P<") || tail.starts_with("(?<") {
            let Some(length) = tail.find('>') else { return Err(("invalid named capture", tail.into())) };
            self.at = start + length + 1;
            let name =
                self.part(start).trim_start_matches("(?").trim_start_matches("P<").trim_start_matches('<').to_owned();
            let name = name.trim_end_matches('>');
            if name.is_empty() || !name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) {
                return Err(("invalid named capture", self.part(start)));
            }
            self.open += 1;
            self.repeatable = false;
            return Ok(());
        }
        let (mut negated, mut seen) = (false, false);
        while let Some(c) = self.next() {
            match c {
                'i' | 'm' | 's' | 'U' => seen = true,
                '-' if !negated => (negated, seen) = (true, false),
                ':' | ')' if !negated || seen => {
                    if c == ':' {
                        self.open += 1;
                        self.repeatable = false;
                    }
                    return Ok(());
                }
                _ => return Err(("invalid or unsupported Perl syntax", self.part(start))),
            }
        }
        Err(("invalid or unsupported Perl syntax", self.part(start)))
    }

    /// After `[`.
    fn class(&mut self, start: usize) -> Found {
        self.accept("^");
        let mut first = true;
        while first || !self.rest().starts_with(']') {
            first = false;
            if self.rest().starts_with("[:")
                && let Some(length) = self.rest().get(2..).and_then(|tail| tail.find(":]"))
            {
                let from = self.at;
                self.at += length + 4;
                if !is_posix(&self.part(from)) {
                    return Err(("invalid character class range", self.part(from)));
                }
                continue;
            }
            let from = self.at;
            let Some(low) = self.class_char(start)? else { continue };
            let rest = self.rest();
            if rest.starts_with('-') && rest.len() >= 2 && !rest.starts_with("-]") {
                self.at += 1;
                let high = self.class_char(start)?;
                if high.is_none_or(|high| high < low) {
                    return Err(("invalid character class range", self.part(from)));
                }
            }
        }
        self.at += 1;
        self.repeatable = true;
        Ok(())
    }

    /// One character of a class; `None` for an escape that stands for many.
    fn class_char(&mut self, class: usize) -> Result<Option<char>, (&'static str, String)> {
        let from = self.at;
        match self.next() {
            None => Err(("missing closing ]", self.whole.get(class..).unwrap_or_default().into())),
            Some('\\') => {
                self.escape(from, true)?;
                let text = self.part(from);
                Ok(match text.chars().nth(1) {
                    Some(c) if c.is_ascii_punctuation() => Some(c),
                    _ => None,
                })
            }
            Some(c) => Ok(Some(c)),
        }
    }

    /// After the backslash at `start`.
    fn escape(&mut self, start: usize, in_class: bool) -> Found {
        let Some(c) = self.next() else { return Err(("trailing backslash at end of expression", String::new())) };
        let fine = match c {
            'A' | 'b' | 'B' | 'C' | 'z' if !in_class => true,
            'Q' if !in_class => {
                let length = self.rest().find("\\E").map_or(self.rest().len(), |end| end + 2);
                self.at += length;
                true
            }
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' | '0' => true,
            '1'..='7' => self.rest().starts_with(|c: char| c.is_digit(8)),
            'p' | 'P' => match self.next() {
                Some('{') => {
                    while !matches!(self.next(), None | Some('}')) {}
                    self.whole.get(..self.at).is_some_and(|read| read.ends_with('}'))
                }
                other => other.is_some(),
            },
            'x' => self.hexadecimal(),
            c => c.is_ascii() && !c.is_ascii_alphanumeric(),
        };
        if fine { Ok(()) } else { Err(("invalid escape sequence", self.part(start))) }
    }

    /// After `\x`.
    fn hexadecimal(&mut self) -> bool {
        if self.accept("{") {
            let from = self.at;
            while let Some(c) = self.next() {
                if c == '}' {
                    return self.at > from + 1;
                }
                if !c.is_ascii_hexdigit() {
                    return false;
                }
            }
            return false;
        }
        let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_hexdigit());
        let (high, low) = (self.next(), self.next());
        digit(high) && digit(low)
    }
}

fn is_posix(class: &str) -> bool {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "word", "xdigit",
    ];
    let name = class.trim_start_matches("[:").trim_end_matches(":]");
    NAMES.contains(&name.strip_prefix('^').unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_as_in_go() {
        for (pattern, wanted) in [
            ("a(b", Some("missing closing ): `a(b`")),
            ("a)b", Some("unexpected ): `a)b`")),
            ("x[a-", Some("missing closing ]: `[a-`")),
            ("*", Some("missing argument to repetition operator: `*`")),
            ("(|+?)", Some("missing argument to repetition operator: `+?`")),
            ("a**", Some("invalid nested repetition operator: `**`")),
            ("a{2}{3}", Some("invalid nested repetition operator: `{2}{3}`")),
            ("a{1001}", Some("invalid repeat count: `{1001}`")),
            ("[z-a]", Some("invalid character class range: `z-a`")),
            ("[[:nope:]]", Some("invalid character class range: `[:nope:]`")),
            (r"a\y", Some(r"invalid escape sequence: `\y`")),
            ("a\\", Some("trailing backslash at end of expression: ``")),
            ("(?=a)", Some("invalid or unsupported Perl syntax: `(?=`")),
            ("(?P<a-b>c)", Some("invalid named capture: `(?P<a-b>`")),
            (r"a{b}|[]a\]-]{2,}?(?i:\d+)\Q**\E", None),
        ] {
            assert_eq!(describe(pattern), wanted.map(|wanted| format!("error parsing regexp: {wanted}")), "{pattern}");
        }
    }
}
