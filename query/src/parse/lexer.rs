//! Bytes to tokens, one at a time, as the parser asks for them.
//!
//! Lazy on purpose: which of two errors in a text is reported depends on how far the parser has looked. What a byte
//! means depends on where it stands, and the lexer knows that by itself: inside `{…}` words are names only, after `[`
//! stands an expression of durations, elsewhere words may be keywords.
//!
//! Source: `prometheus promql/parser/lex.go`, Prometheus 3.14.

use super::ast::{BinaryOp, Span};
use super::error::ParseError;
use super::literal::{code_point, quote, quote_char};
use super::token::{Kind, Token, keyword};

const DECIMAL: &str = "0123456789";
const HEXADECIMAL: &str = "0123456789abcdefABCDEF";

/// Reads one text.
pub(crate) struct Lexer<'a> {
    text: &'a str,
    /// First byte of the token being read.
    start: usize,
    /// First byte not read yet.
    at: usize,
    paren_depth: u32,
    brace_open: bool,
    bracket_open: bool,
    /// A `:` was seen since the last `[`.
    got_colon: bool,
    /// A number was seen right after some `[`.
    got_duration: bool,
    /// Between a `[` and the first number after it.
    in_duration: bool,
}

type Step = Result<Option<Kind>, ParseError>;

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn is_alpha(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

fn is_alphanumeric(c: char) -> bool {
    is_alpha(c) || c.is_ascii_digit()
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            start: 0,
            at: 0,
            paren_depth: 0,
            brace_open: false,
            bracket_open: false,
            got_colon: false,
            got_duration: false,
            in_duration: false,
        }
    }

    /// The next token; at the end of the text `Eof`, again and again.
    ///
    /// # Errors
    /// Bytes that are no token; the lexer is not to be asked again.
    pub(crate) fn token(&mut self) -> Result<Token<'a>, ParseError> {
        loop {
            self.start = self.at;
            let step = if self.in_duration {
                self.in_duration()?
            } else if self.brace_open {
                self.in_braces()?
            } else {
                self.in_statement()?
            };
            if let Some(kind) = step {
                return Ok(Token { kind, text: self.word(), span: self.span(self.start, self.at) });
            }
        }
    }

    fn span(&self, start: usize, end: usize) -> Span {
        // The parser refuses longer texts first.
        let small = |n: usize| u32::try_from(n.min(self.text.len())).unwrap_or(u32::MAX);
        Span { start: small(start), end: small(end) }
    }

    fn word(&self) -> &'a str {
        self.text.get(self.start..self.at).unwrap_or_default()
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn is(&self, set: &str) -> bool {
        self.peek().is_some_and(|c| set.contains(c))
    }

    fn accept(&mut self, set: &str) -> bool {
        let yes = self.is(set);
        if yes {
            self.at += 1;
        }
        yes
    }

    fn skip(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
    }

    /// An error that starts where the current token does.
    fn error<T>(&self, msg: String) -> Result<T, ParseError> {
        Err(ParseError::new(self.text, self.span(self.start, self.text.len()), msg))
    }

    /// An error that starts after what was read.
    fn error_after<T>(&self, msg: String) -> Result<T, ParseError> {
        Err(ParseError::new(self.text, self.span(self.at, self.text.len()), msg))
    }

    fn in_statement(&mut self) -> Step {
        let Some(c) = self.next() else {
            return match (self.paren_depth, self.bracket_open) {
                (0, false) => Ok(Some(Kind::Eof)),
                (0, true) => self.error("unclosed left bracket".into()),
                _ => self.error("unclosed left parenthesis".into()),
            };
        };
        Ok(Some(match c {
            '#' => return self.comment(),
            c if is_space(c) => {
                self.skip(is_space);
                return Ok(None);
            }
            ',' => Kind::Comma,
            '*' => Kind::Op(BinaryOp::Mul),
            '/' => Kind::Op(BinaryOp::Div),
            '%' => Kind::Op(BinaryOp::Mod),
            '+' => Kind::Op(BinaryOp::Add),
            '-' => Kind::Op(BinaryOp::Sub),
            '^' => Kind::Op(BinaryOp::Pow),
            '@' => Kind::At,
            '=' | '!' | '<' | '>' => return self.comparison(c),
            '"' | '\'' => return self.string(c),
            '`' => return self.raw_string(),
            '(' | ')' => return self.paren(c),
            '{' => {
                self.brace_open = true;
                Kind::LeftBrace
            }
            '[' | ']' => return self.bracket(c),
            c if c.is_ascii_digit() || (c == '.' && self.is(DECIMAL)) => {
                self.at = self.start;
                return self.number_or_duration();
            }
            c if is_alpha(c) || c == ':' => {
                return if self.bracket_open { self.word_in_brackets(c) } else { Ok(Some(self.keyword_or_name())) };
            }
            c => return self.error(format!("unexpected character: {}", quote_char(Some(c)))),
        }))
    }

    fn comment(&mut self) -> Step {
        self.skip(|c| !matches!(c, '\n' | '\r'));
        Ok(None)
    }

    fn comparison(&mut self, first: char) -> Step {
        let second = self.peek();
        let (kind, length) = match (first, second) {
            ('=', Some('=')) => (Kind::Op(BinaryOp::Eq), 1),
            ('=', Some('~')) => return self.error("unexpected character after '=': '~'".into()),
            ('=', _) => (Kind::Assign, 0),
            ('!', Some('=')) => (Kind::Op(BinaryOp::NotEq), 1),
            ('!', c) => return self.error(format!("unexpected character after '!': {}", quote_char(c))),
            ('<', Some('=')) => (Kind::Op(BinaryOp::LessEq), 1),
            ('<', Some('/')) => (Kind::Op(BinaryOp::TrimUpper), 1),
            ('<', _) => (Kind::Op(BinaryOp::Less), 0),
            (_, Some('=')) => (Kind::Op(BinaryOp::GreaterEq), 1),
            (_, Some('/')) => (Kind::Op(BinaryOp::TrimLower), 1),
            _ => (Kind::Op(BinaryOp::Greater), 0),
        };
        self.at += length;
        Ok(Some(kind))
    }

    fn paren(&mut self, c: char) -> Step {
        if c == '(' {
            self.paren_depth = self.paren_depth.saturating_add(1);
            return Ok(Some(Kind::LeftParen));
        }
        match self.paren_depth.checked_sub(1) {
            Some(depth) => self.paren_depth = depth,
            None => return self.error_after("unexpected right parenthesis ')'".into()),
        }
        Ok(Some(Kind::RightParen))
    }

    fn bracket(&mut self, c: char) -> Step {
        match (c, self.bracket_open) {
            ('[', true) => self.error("unexpected left bracket '['".into()),
            ('[', false) => {
                self.got_colon = false;
                self.bracket_open = true;
                self.in_duration = true;
                Ok(Some(Kind::LeftBracket))
            }
            (_, false) => self.error("unexpected right bracket ']'".into()),
            (_, true) => {
                self.bracket_open = false;
                Ok(Some(Kind::RightBracket))
            }
        }
    }

    /// After the first number in brackets: `:` and the words of duration expressions.
    fn word_in_brackets(&mut self, c: char) -> Step {
        if c == ':' {
            if self.got_colon {
                return self.error("unexpected colon ':'".into());
            }
            self.got_colon = true;
            return Ok(Some(Kind::Colon));
        }
        match self.duration_keyword(c) {
            Some(kind) => Ok(Some(kind)),
            None => self.error(format!("unexpected character: {}, expected ':'", quote_char(Some(c)))),
        }
    }

    fn duration_keyword(&mut self, first: char) -> Option<Kind> {
        if !matches!(first.to_ascii_lowercase(), 's' | 'r' | 'm') {
            return None;
        }
        self.skip(is_alpha);
        keyword(self.word()).filter(|kind| matches!(kind, Kind::Step | Kind::Range | Kind::MaxOf | Kind::MinOf))
    }

    fn keyword_or_name(&mut self) -> Kind {
        self.skip(|c| is_alphanumeric(c) || c == ':');
        let word = self.word();
        match keyword(word) {
            // Metrics may bear these names, so they are keywords only where `(` follows.
            Some(Kind::Fill | Kind::FillLeft | Kind::FillRight)
                if !self.rest().trim_start_matches(is_space).starts_with('(') =>
            {
                Kind::Identifier
            }
            Some(kind) => kind,
            None if word.contains(':') => Kind::MetricIdentifier,
            None => Kind::Identifier,
        }
    }

    fn in_braces(&mut self) -> Step {
        let Some(c) = self.next() else {
            return self.error("unexpected end of input inside braces".into());
        };
        Ok(Some(match c {
            '#' => return self.comment(),
            c if is_space(c) => {
                self.skip(is_space);
                return Ok(None);
            }
            c if is_alpha(c) => {
                self.skip(is_alphanumeric);
                Kind::Identifier
            }
            ',' => Kind::Comma,
            '"' | '\'' => return self.string(c),
            '`' => return self.raw_string(),
            '=' if self.accept("~") => Kind::RegexMatch,
            '=' => Kind::Assign,
            '!' => match self.next() {
                Some('~') => Kind::RegexNoMatch,
                Some('=') => Kind::Op(BinaryOp::NotEq),
                c => return self.error(format!("unexpected character after '!' inside braces: {}", quote_char(c))),
            },
            '{' => return self.error("unexpected left brace '{'".into()),
            '}' => {
                self.brace_open = false;
                Kind::RightBrace
            }
            c => return self.error(format!("unexpected character inside braces: {}", quote_char(Some(c)))),
        }))
    }

    fn in_duration(&mut self) -> Step {
        let Some(c) = self.next() else {
            return self.error("unexpected end of input in duration expression".into());
        };
        Ok(Some(match c {
            ']' => {
                self.bracket_open = false;
                self.got_colon = false;
                self.in_duration = false;
                Kind::RightBracket
            }
            ':' if !self.got_duration => {
                return self.error_after("unexpected colon before duration in duration expression".into());
            }
            ':' if self.got_colon => {
                return self.error_after("unexpected repeated colon in duration expression".into());
            }
            ':' => {
                self.got_colon = true;
                Kind::Colon
            }
            '(' | ')' => return self.paren(c),
            c if is_space(c) => {
                self.skip(is_space);
                return Ok(None);
            }
            '+' => Kind::Op(BinaryOp::Add),
            '-' => Kind::Op(BinaryOp::Sub),
            '*' => Kind::Op(BinaryOp::Mul),
            '/' => Kind::Op(BinaryOp::Div),
            '%' => Kind::Op(BinaryOp::Mod),
            '^' => Kind::Op(BinaryOp::Pow),
            ',' => Kind::Comma,
            c if c.is_ascii_digit() || (c == '.' && self.is(DECIMAL)) => {
                self.at = self.start;
                self.got_duration = true;
                self.in_duration = false;
                return self.number_or_duration();
            }
            c => match self.duration_keyword(c) {
                Some(kind) => kind,
                None => {
                    let c = quote_char(Some(c));
                    return self.error(format!("unexpected character in duration expression: {c}"));
                }
            },
        }))
    }

    fn string(&mut self, quote: char) -> Step {
        loop {
            match self.next() {
                Some('\\') => self.escape(quote)?,
                Some(char::REPLACEMENT_CHARACTER) => return self.error("invalid UTF-8 rune".into()),
                None | Some('\n') => return self.error("unterminated quoted string".into()),
                Some(c) if c == quote => return Ok(Some(Kind::String)),
                Some(_) => {}
            }
        }
    }

    fn raw_string(&mut self) -> Step {
        loop {
            match self.next() {
                Some(char::REPLACEMENT_CHARACTER) => return self.error("invalid UTF-8 rune".into()),
                None => return self.error("unterminated raw string".into()),
                Some('`') => return Ok(Some(Kind::String)),
                Some(_) => {}
            }
        }
    }

    /// One escape sequence after its backslash.
    fn escape(&mut self, quote: char) -> Result<(), ParseError> {
        let Some(kind) = self.next() else {
            return self.error("escape sequence not terminated".into());
        };
        let (digits, radix, max) = match kind {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' => return Ok(()),
            c if c == quote => return Ok(()),
            '0'..='7' => {
                self.at -= 1;
                (3, 8, 255)
            }
            'x' => (2, 16, 255),
            'u' => (4, 16, u32::from(char::MAX)),
            'U' => (8, 16, u32::from(char::MAX)),
            c => return self.error(format!("unknown escape sequence {}", code_point(c))),
        };
        let mut code: u32 = 0;
        for _ in 0..digits {
            let Some(c) = self.next() else {
                return self.error("escape sequence not terminated".into());
            };
            let Some(digit) = c.to_digit(radix) else {
                return self.error(format!("illegal character {} in escape sequence", code_point(c)));
            };
            code = code.wrapping_mul(radix).wrapping_add(digit);
        }
        if code > max || (0xd800..0xe000).contains(&code) {
            return self.error("escape sequence is an invalid Unicode code point".into());
        }
        Ok(())
    }

    fn number_or_duration(&mut self) -> Step {
        if self.number() {
            return Ok(Some(Kind::Number));
        }
        if self.rest_of_duration() {
            return Ok(Some(Kind::Duration));
        }
        self.error(format!("bad number or duration syntax: {}", quote(self.word().as_bytes())))
    }

    /// After the first digits: a unit, and pairs of digits and unit. When it fails it has read the byte that is wrong.
    fn rest_of_duration(&mut self) -> bool {
        if !self.accept("smhdwy") {
            return false;
        }
        self.accept("s");
        while self.accept(DECIMAL) {
            self.skip(|c| c.is_ascii_digit());
            if !self.accept("smhdw") {
                return false;
            }
            self.accept("s");
        }
        match self.peek() {
            Some(c) if is_alphanumeric(c) => {
                self.at += 1;
                false
            }
            _ => true,
        }
    }

    /// A number's shape; whether its value makes sense is found when it is read. When it fails, what it has read is
    /// where a duration goes on.
    fn number(&mut self) -> bool {
        let begin = self.at;
        let mut digits = DECIMAL;
        if self.accept("0") && self.accept("xX") {
            self.accept("_");
            digits = HEXADECIMAL;
        }
        self.accept(".");
        self.accept(digits);
        let (mut dot, mut exponent) = (false, false);
        while self.is(digits) || self.is("._eE") {
            if self.is(".") {
                self.at += 1;
                if dot || self.accept("_.") || digits == HEXADECIMAL {
                    return false;
                }
                dot = true;
            } else if self.is("eE") {
                self.at += 1;
                if exponent {
                    return false;
                }
                // Among hexadecimal digits too: `0xe` is read as Prometheus reads it.
                exponent = true;
                self.accept("+-");
                if self.accept("._eE") || self.peek().is_none() {
                    return false;
                }
            } else if self.accept("_") {
                if self.accept("._eE") || self.peek().is_none() {
                    return false;
                }
            } else {
                self.skip(|c| digits.contains(c));
            }
        }
        self.at != begin && !self.peek().is_some_and(is_alphanumeric)
    }
}
