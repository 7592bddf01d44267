//! The canonical text of a tree: reads back to the same tree, and is what Prometheus prints.
//!
//! Labels print sorted. Texts differ from Prometheus' only where its own cannot be read again: U+FFFD is escaped, and
//! labels named like a number (`by ("inf")`) keep their quotes.
//!
//! Source: `prometheus promql/parser/printer.go`, Prometheus 3.14.

use std::fmt::{self, Display, Formatter, Write};

use engram_model::labels::METRIC_NAME;
use engram_model::{MatchOp, Matcher};

use super::ast::{
    AggregateExpr, At, BinaryExpr, BinaryOp, Cardinality, DurationExpr, DurationKind, Expr, Extension, MatrixSelector,
    NumberLiteral, SubqueryExpr, VectorSelector,
};
use super::literal::{duration, float, float_short, millis, quote};
use super::token::{Kind, keyword};

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::String(string) => f.write_str(&quote(&string.value)),
            Self::Paren(paren) => write!(f, "({})", paren.expr),
            Self::Unary(unary) => write!(f, "{}{}", if unary.minus { '-' } else { '+' }, unary.expr),
            Self::Binary(binary) => {
                match &binary.lhs {
                    // A sign would bind less tight than `^`.
                    Self::Number(base) if binary.op == BinaryOp::Pow && base.value == f64::INFINITY => {
                        f.write_str("Inf")?;
                    }
                    lhs => lhs.fmt(f)?,
                }
                write!(f, " {} {}", Operator(binary), binary.rhs)
            }
            Self::Aggregate(aggregate) => {
                write!(f, "{}(", Aggregation(aggregate))?;
                if let Some(param) = &aggregate.param {
                    write!(f, "{param}, ")?;
                }
                write!(f, "{})", aggregate.expr)
            }
            Self::Call(call) => {
                write!(f, "{}(", call.func)?;
                list(f, ", ", &call.args)?;
                f.write_char(')')
            }
            Self::VectorSelector(selector) => {
                labels(f, selector)?;
                at(f, selector.at)?;
                extension(f, selector.extension)?;
                offset(f, selector.offset_ms, selector.offset_expr.as_deref())
            }
            Self::MatrixSelector(matrix) => {
                let MatrixSelector { selector, range_ms, range_expr, .. } = matrix.as_ref();
                labels(f, selector)?;
                write!(f, "[{}]", Length(*range_ms, range_expr.as_deref()))?;
                extension(f, selector.extension)?;
                at(f, selector.at)?;
                offset(f, selector.offset_ms, selector.offset_expr.as_deref())
            }
            Self::Subquery(subquery) => write!(f, "{}{}", subquery.expr, Window(subquery)),
        }
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, between: &str, items: impl IntoIterator<Item = T>) -> fmt::Result {
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            f.write_str(between)?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

impl Display for NumberLiteral {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.duration {
            true => f.write_str(&duration(millis(self.value))),
            false => f.write_str(&float(self.value)),
        }
    }
}

/// `sum by (a) `, up to the parenthesis.
pub(super) struct Aggregation<'e>(pub(super) &'e AggregateExpr);

impl Display for Aggregation<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.op.as_str())?;
        let word = match (self.0.without, self.0.grouping.is_empty()) {
            (true, _) => " without",
            (false, false) => " by",
            (false, true) => return Ok(()),
        };
        names(f, word, &self.0.grouping)?;
        f.write_char(' ')
    }
}

/// `word (a, b)`.
fn names(f: &mut Formatter<'_>, word: &str, labels: &[String]) -> fmt::Result {
    write!(f, "{word} (")?;
    list(f, ", ", labels.iter().map(|label| Name(label)))?;
    f.write_char(')')
}

/// A label's name where words may be keywords, in quotes if need be.
struct Name<'e>(&'e str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match is_word(self.0) && keyword(self.0) != Some(Kind::Number) {
            true => f.write_str(self.0),
            false => f.write_str(&quote(self.0.as_bytes())),
        }
    }
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// `== bool on (a) group_left (b) fill (0)`.
pub(super) struct Operator<'e>(pub(super) &'e BinaryExpr);

impl Display for Operator<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.op.as_str())?;
        if self.0.return_bool {
            f.write_str(" bool")?;
        }
        let Some(matching) = &self.0.matching else { return Ok(()) };
        let group = match matching.cardinality {
            Cardinality::ManyToOne => " group_left",
            Cardinality::OneToMany => " group_right",
            Cardinality::OneToOne | Cardinality::ManyToMany => "",
        };
        if !matching.labels.is_empty() || matching.on || !group.is_empty() {
            names(f, if matching.on { " on" } else { " ignoring" }, &matching.labels)?;
        }
        if !group.is_empty() {
            names(f, group, &matching.include)?;
        }
        if let (Some(left), Some(right)) = (matching.fill_left, matching.fill_right)
            && left == right
        {
            return write!(f, " fill ({})", float_short(left));
        }
        if let Some(left) = matching.fill_left {
            write!(f, " fill_left ({})", float_short(left))?;
        }
        if let Some(right) = matching.fill_right {
            write!(f, " fill_right ({})", float_short(right))?;
        }
        Ok(())
    }
}

fn labels(f: &mut Formatter<'_>, selector: &VectorSelector) -> fmt::Result {
    let name = selector.name.as_deref().unwrap_or_default();
    f.write_str(name)?;
    let is_the_name = |matcher: &&Matcher| {
        !name.is_empty() && &*matcher.name == METRIC_NAME && matcher.op == MatchOp::Equal && &*matcher.value == name
    };
    let mut texts: Vec<String> = selector.matchers.iter().filter(|m| !is_the_name(m)).map(matcher).collect();
    if texts.is_empty() {
        // `{}` is printed as nothing upstream; it stands only where `info` takes its labels.
        return if name.is_empty() { f.write_str("{}") } else { Ok(()) };
    }
    texts.sort_unstable();
    f.write_char('{')?;
    list(f, ",", &texts)?;
    f.write_char('}')
}

fn matcher(matcher: &Matcher) -> String {
    let value = quote(matcher.value.as_bytes());
    let op = matcher.op.as_str();
    match is_word(&matcher.name) {
        true => format!("{}{op}{value}", matcher.name),
        false => format!("{}{op}{value}", quote(matcher.name.as_bytes())),
    }
}

fn at(f: &mut Formatter<'_>, at: Option<At>) -> fmt::Result {
    match at {
        None => Ok(()),
        #[allow(clippy::cast_precision_loss, reason = "printed with three decimals, as Prometheus divides")]
        Some(At::Time(millis)) => write!(f, " @ {:.3}", millis as f64 / 1000.0),
        Some(At::Start) => f.write_str(" @ start()"),
        Some(At::End) => f.write_str(" @ end()"),
    }
}

fn extension(f: &mut Formatter<'_>, extension: Extension) -> fmt::Result {
    f.write_str(match extension {
        Extension::None => "",
        Extension::Anchored => " anchored",
        Extension::Smoothed => " smoothed",
    })
}

fn offset(f: &mut Formatter<'_>, offset_ms: i64, offset_expr: Option<&DurationExpr>) -> fmt::Result {
    match offset_expr {
        Some(expr) => write!(f, " offset {expr}"),
        None if offset_ms == 0 => Ok(()),
        None => write!(f, " offset {}", duration(offset_ms)),
    }
}

/// A range or step in milliseconds, or the expression it is.
struct Length<'e>(i64, Option<&'e DurationExpr>);

impl Display for Length<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(expr) => expr.fmt(f),
            None => f.write_str(&duration(self.0)),
        }
    }
}

/// `[1h:5m] @ 10.000 offset 5m`.
pub(super) struct Window<'e>(pub(super) &'e SubqueryExpr);

impl Display for Window<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let subquery = self.0;
        write!(f, "[{}:", Length(subquery.range_ms, subquery.range_expr.as_deref()))?;
        if subquery.step_ms != 0 || subquery.step_expr.is_some() {
            write!(f, "{}", Length(subquery.step_ms, subquery.step_expr.as_deref()))?;
        }
        f.write_char(']')?;
        at(f, subquery.at)?;
        offset(f, subquery.offset_ms, subquery.offset_expr.as_deref())
    }
}

impl Display for DurationExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.wrapped {
            f.write_char('(')?;
        }
        match &self.kind {
            DurationKind::Number(number) => number.fmt(f)?,
            DurationKind::Step => f.write_str("step()")?,
            DurationKind::Range => f.write_str("range()")?,
            DurationKind::Unary { minus, operand } => write!(f, "{}{operand}", if *minus { "-" } else { "" })?,
            DurationKind::Binary { op, lhs, rhs } => write!(f, "{lhs} {} {rhs}", op.as_str())?,
            DurationKind::Min(lhs, rhs) => write!(f, "min_of({lhs}, {rhs})")?,
            DurationKind::Max(lhs, rhs) => write!(f, "max_of({lhs}, {rhs})")?,
        }
        if self.wrapped {
            f.write_char(')')?;
        }
        Ok(())
    }
}
