//! What is wrong with a query's text, and where.
//!
//! Texts are those of Prometheus, position first: dashboards and people know them, and the position is what an editor
//! underlines. Reading stops at the first error: Prometheus prints no other.

use std::fmt;

use super::ast::Span;

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Where, in bytes of the text.
    pub span: Span,
    /// What is wrong, without the position.
    pub msg: String,
    /// Line of the first byte, from 1; 0 when the text is empty.
    pub line: u32,
    /// Byte within the line, from 1.
    pub column: u32,
}

impl ParseError {
    /// An error at `span` of `text`.
    #[must_use]
    pub fn new(text: &str, span: Span, msg: String) -> Self {
        let at = usize::try_from(span.start).unwrap_or(usize::MAX).min(text.len());
        let before = text.as_bytes().get(..at).unwrap_or_default();
        let breaks = before.iter().filter(|byte| **byte == b'\n').count();
        let column = match before.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => at - last,
            None => at + 1,
        };
        let line = if text.is_empty() { 0 } else { breaks + 1 };
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { span, msg, line: small(line), column: small(column) }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str("unknown position")?,
            line => write!(f, "{line}:{}", self.column)?,
        }
        write!(f, ": parse error: {}", self.msg)
    }
}

/// Why a text is no query: never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseErrors(pub Vec<ParseError>);

impl From<ParseError> for ParseErrors {
    fn from(error: ParseError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ParseErrors {
    /// The first error, as Prometheus prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.first() {
            Some(first) => first.fmt(f),
            None => f.write_str("error contains no error message"),
        }
    }
}

impl std::error::Error for ParseErrors {}

impl From<ParseErrors> for crate::error::Error {
    fn from(errors: ParseErrors) -> Self {
        Self::Parse(errors.to_string())
    }
}
