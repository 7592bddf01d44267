//! From text to tree: the whole language of Prometheus 3.14.
//!
//! [`lexer`] makes tokens, [`parser`] a tree of them (recursive descent, operators by precedence), [`check`] sees that
//! types fit. Both report the error Prometheus would report first, at its place and in its words. The tree
//! ([`ast`]) prints back to canonical text ([`printer`]), to text broken into lines ([`prettier`]) and to JSON for
//! user interfaces ([`json`]). [`durations`] evaluates what stands for a duration once start, end and step are known.
//! [`functions`] is the table of signatures, [`literal`] the written form of numbers, durations and strings.
//!
//! What experimental features add is read always and refused by [`Switches`].
//!
//! Text from outside is bounded: [`TEXT_BYTES_MAX`], [`NESTING_MAX`], [`HEIGHT_MAX`], [`REGEX_MATCHERS_MAX`].

pub mod ast;
mod check;
pub mod durations;
pub mod error;
pub mod functions;
pub mod json;
mod lexer;
mod literal;
mod parser;
pub mod prettier;
mod printer;

#[cfg(test)]
mod tests;
mod token;
mod walk;

use engram_model::Matcher;

use ast::Expr;
pub use durations::resolve_durations;
pub use error::{ParseError, ParseErrors};
pub use json::to_json;
pub use prettier::prettify;
pub use walk::selectors;

/// Longest text of a query, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// How deep parentheses, calls and signs may nest.
pub const NESTING_MAX: u32 = 128;
/// How high a tree may be: `a + b + c …` grows it without nesting. Whoever walks the tree may recurse this deep.
pub const HEIGHT_MAX: u32 = 256;
/// Most regular expressions in one query: each may take memory once compiled.
pub const REGEX_MATCHERS_MAX: u32 = 1024;

/// Which experimental parts of the language may be used. The default is none, as in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Switches {
    /// Functions and aggregations marked experimental: `info`, `limitk`, `start()` …
    pub experimental_functions: bool,
    /// Arithmetic where a duration stands: `[5m * 2]`, `offset step()`.
    pub duration_expressions: bool,
    /// `anchored` and `smoothed`.
    pub extended_range_selectors: bool,
    /// `fill`, `fill_left`, `fill_right` on binary operators.
    pub binop_fill: bool,
}

impl Switches {
    /// The whole language.
    #[must_use]
    pub fn all() -> Self {
        Self {
            experimental_functions: true,
            duration_expressions: true,
            extended_range_selectors: true,
            binop_fill: true,
        }
    }
}

/// Reads and checks an expression.
///
/// # Errors
/// The first thing wrong with the text; the caller must change it.
pub fn parse(text: &str, switches: &Switches) -> Result<Expr, ParseErrors> {
    let mut expr = parser::Parser::new(text, *switches)?.expression()?;
    check::check(text, &mut expr)?;
    Ok(expr)
}

/// Reads a selector such as `up{job="x"}`: the `match[]` parameters. A selector that would match every series is
/// for the caller to refuse.
///
/// # Errors
/// The first thing wrong with the text; the caller must change it.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseErrors> {
    Ok(parser::Parser::new(text, Switches::default())?.selector()?)
}
