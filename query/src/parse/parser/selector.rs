//! Braces with matchers, and lists of labels.
//!
//! Labels are UTF-8 in the store, so bytes of a matcher that are not (`"\xff"`) are read as U+FFFD.

use engram_model::labels::METRIC_NAME;
use engram_model::{MatchOp, Matcher};

use super::super::REGEX_MATCHERS_MAX;
use super::super::ast::{BinaryOp, Extension, Span, VectorSelector};
use super::super::literal;
use super::super::token::{Kind, Token};
use super::{Parser, Result, Within};

const MATCHER_START: Within = Within { context: "label matching", expected: "identifier or \"}\"" };
const MATCHER_OP: Within = Within { context: "label matching", expected: "label matching operator" };
const MATCHER_VALUE: Within = Within { context: "label matching", expected: "string" };
const MATCHER_END: Within = Within { context: "label matching", expected: "\",\" or \"}\"" };
const LABELS_START: Within = Within { context: "grouping opts", expected: "\"(\"" };
const LABEL: Within = Within { context: "grouping opts", expected: "label" };
const LABEL_END: Within = Within { context: "grouping opts", expected: "\",\" or \")\"" };

impl<'a> Parser<'a> {
    /// A selector; its name, if it has one, is taken.
    pub(super) fn vector_selector(&mut self, name: Option<Token<'a>>) -> Result<VectorSelector> {
        let open = self.peek()?;
        let mut matchers = Vec::new();
        let mut span = name.map_or(open.span, |name| name.span);
        if open.kind == Kind::LeftBrace {
            self.take();
            self.matchers(&mut matchers)?;
            span.end = self.taken_end;
        }
        if let Some(name) = name {
            matchers.push(Matcher::equal(METRIC_NAME, name.text));
        }
        Ok(VectorSelector {
            name: name.map(|name| name.text.into()),
            matchers,
            offset_ms: 0,
            offset_expr: None,
            at: None,
            extension: Extension::None,
            span,
        })
    }

    /// Matchers up to `}`.
    fn matchers(&mut self, into: &mut Vec<Matcher>) -> Result<()> {
        if self.accept(Kind::RightBrace)?.is_some() {
            return Ok(());
        }
        loop {
            into.push(self.matcher()?);
            let comma = self.accept(Kind::Comma)?.is_some();
            if self.accept(Kind::RightBrace)?.is_some() {
                return Ok(());
            }
            if !comma {
                return self.unexpected_in(MATCHER_END);
            }
        }
    }

    fn matcher(&mut self) -> Result<Matcher> {
        let label = self.peek()?;
        let name = match label.kind {
            Kind::Identifier => label.text.to_owned(),
            Kind::String => self.string(label)?,
            _ => return self.unexpected_in(MATCHER_START),
        };
        self.take();
        let op = match self.peek()?.kind {
            Kind::Assign => MatchOp::Equal,
            Kind::Op(BinaryOp::NotEq) => MatchOp::NotEqual,
            Kind::RegexMatch => MatchOp::Regex,
            Kind::RegexNoMatch => MatchOp::NotRegex,
            _ if label.kind == Kind::String => return Ok(Matcher::equal(METRIC_NAME, &name)),
            _ => return self.unexpected_in(MATCHER_OP),
        };
        self.take();
        let token = self.peek()?;
        if token.kind != Kind::String {
            return self.unexpected_in(MATCHER_VALUE);
        }
        let value = self.string(token)?;
        self.take();
        let span = Span { start: label.span.start, end: token.span.end };
        if matches!(op, MatchOp::Regex | MatchOp::NotRegex) {
            self.regexes += 1;
            if self.regexes > REGEX_MATCHERS_MAX {
                return self.fail(span, format!("query has more than {REGEX_MATCHERS_MAX} regular expressions"));
            }
        }
        match Matcher::new(&name, op, &value) {
            Ok(matcher) => Ok(matcher),
            Err(bad) => self.fail(span, bad.reason),
        }
    }

    fn string(&self, token: Token<'a>) -> Result<String> {
        match literal::unquote(token.text) {
            Some(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            None => self.fail(token.span, format!("error unquoting string {}", token.text)),
        }
    }

    /// `(a, b)` after `by`, `on` and the like.
    pub(super) fn label_list(&mut self) -> Result<Vec<String>> {
        if self.accept(Kind::LeftParen)?.is_none() {
            return self.unexpected_in(LABELS_START);
        }
        let mut labels = Vec::new();
        if self.accept(Kind::RightParen)?.is_some() {
            return Ok(labels);
        }
        loop {
            labels.push(self.label()?);
            let comma = self.accept(Kind::Comma)?.is_some();
            if self.accept(Kind::RightParen)?.is_some() {
                return Ok(labels);
            }
            if !comma {
                return self.unexpected_in(LABEL_END);
            }
        }
    }

    fn label(&mut self) -> Result<String> {
        let token = self.peek()?;
        if token.kind.may_name_a_label() {
            self.take();
            return Ok(token.text.to_owned());
        }
        if token.kind != Kind::String {
            return self.unexpected_in(LABEL);
        }
        let bytes = literal::unquote(token.text).unwrap_or_default();
        self.take();
        match String::from_utf8(bytes) {
            Ok(label) if !label.is_empty() => Ok(label),
            Ok(_) => self.fail(token.span, "invalid label name for grouping: \"\""),
            Err(bad) => {
                let shown = literal::quote(bad.as_bytes());
                self.fail(token.span, format!("invalid label name for grouping: {shown}"))
            }
        }
    }
}
