//! Tokens: what the lexer hands to the parser, and how an error text names them.

use super::ast::{AggregateOp, BinaryOp, Span};
use super::literal;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Eof,
    Identifier,
    /// An identifier with a colon in it.
    MetricIdentifier,
    Number,
    Duration,
    String,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    Comma,
    Colon,
    /// A single `=`.
    Assign,
    RegexMatch,
    RegexNoMatch,
    At,
    Op(BinaryOp),
    Aggregate(AggregateOp),
    Bool,
    By,
    Without,
    On,
    Ignoring,
    GroupLeft,
    GroupRight,
    Fill,
    FillLeft,
    FillRight,
    Offset,
    Anchored,
    Smoothed,
    Start,
    End,
    Step,
    Range,
    MaxOf,
    MinOf,
}

/// A token and its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) span: Span,
}

/// The word's meaning outside of braces, upper case or lower; `None`: a name.
pub(crate) fn keyword(word: &str) -> Option<Kind> {
    const LONGEST: usize = "count_values".len();
    if word.len() > LONGEST {
        return None;
    }
    Some(match word.to_ascii_lowercase().as_str() {
        "and" => Kind::Op(BinaryOp::And),
        "or" => Kind::Op(BinaryOp::Or),
        "unless" => Kind::Op(BinaryOp::Unless),
        "atan2" => Kind::Op(BinaryOp::Atan2),
        "sum" => Kind::Aggregate(AggregateOp::Sum),
        "avg" => Kind::Aggregate(AggregateOp::Avg),
        "count" => Kind::Aggregate(AggregateOp::Count),
        "min" => Kind::Aggregate(AggregateOp::Min),
        "max" => Kind::Aggregate(AggregateOp::Max),
        "group" => Kind::Aggregate(AggregateOp::Group),
        "stddev" => Kind::Aggregate(AggregateOp::Stddev),
        "stdvar" => Kind::Aggregate(AggregateOp::Stdvar),
        "topk" => Kind::Aggregate(AggregateOp::TopK),
        "bottomk" => Kind::Aggregate(AggregateOp::BottomK),
        "count_values" => Kind::Aggregate(AggregateOp::CountValues),
        "quantile" => Kind::Aggregate(AggregateOp::Quantile),
        "limitk" => Kind::Aggregate(AggregateOp::LimitK),
        "limit_ratio" => Kind::Aggregate(AggregateOp::LimitRatio),
        "bool" => Kind::Bool,
        "by" => Kind::By,
        "without" => Kind::Without,
        "on" => Kind::On,
        "ignoring" => Kind::Ignoring,
        "group_left" => Kind::GroupLeft,
        "group_right" => Kind::GroupRight,
        "fill" => Kind::Fill,
        "fill_left" => Kind::FillLeft,
        "fill_right" => Kind::FillRight,
        "offset" => Kind::Offset,
        "anchored" => Kind::Anchored,
        "smoothed" => Kind::Smoothed,
        "start" => Kind::Start,
        "end" => Kind::End,
        "step" => Kind::Step,
        "range" => Kind::Range,
        "max_of" => Kind::MaxOf,
        "min_of" => Kind::MinOf,
        "inf" | "nan" => Kind::Number,
        _ => return None,
    })
}

impl Kind {
    /// Words that may name a metric.
    pub(crate) fn may_name_a_metric(self) -> bool {
        match self {
            Self::Op(op) => op.is_set(),
            Self::Identifier
            | Self::MetricIdentifier
            | Self::Aggregate(_)
            | Self::By
            | Self::Without
            | Self::Fill
            | Self::FillLeft
            | Self::FillRight
            | Self::Offset
            | Self::Anchored
            | Self::Smoothed
            | Self::Start
            | Self::End
            | Self::Step
            | Self::Range
            | Self::MaxOf
            | Self::MinOf => true,
            _ => false,
        }
    }

    /// Words that may be a label's name in `by (…)` and the like: all of them.
    pub(crate) fn may_name_a_label(self) -> bool {
        self.may_name_a_metric()
            || matches!(
                self,
                Self::Bool | Self::On | Self::Ignoring | Self::GroupLeft | Self::GroupRight | Self::Op(BinaryOp::Atan2)
            )
    }

    /// Words that are a function's name when `(` follows.
    pub(crate) fn may_name_a_function(self) -> bool {
        matches!(
            self,
            Self::Identifier | Self::Start | Self::End | Self::Step | Self::Range | Self::MaxOf | Self::MinOf
        )
    }

    /// Whether an expression may start so.
    pub(crate) fn starts_expression(self) -> bool {
        self.may_name_a_metric()
            || matches!(
                self,
                Self::Number
                    | Self::Duration
                    | Self::String
                    | Self::LeftParen
                    | Self::LeftBrace
                    | Self::Op(BinaryOp::Add | BinaryOp::Sub)
            )
    }
}

impl Token<'_> {
    /// As an error text names it.
    pub(crate) fn describe(&self) -> String {
        let text = self.text;
        match self.kind {
            Kind::Eof => "end of input".into(),
            Kind::Identifier => format!("identifier {}", literal::quote(text.as_bytes())),
            Kind::MetricIdentifier => format!("metric identifier {}", literal::quote(text.as_bytes())),
            Kind::Number => format!("number {}", shortened(text)),
            Kind::Duration => format!("duration {}", shortened(text)),
            Kind::String => format!("string {}", shortened(text)),
            Kind::Op(_) | Kind::At | Kind::RegexMatch | Kind::RegexNoMatch => format!("<op:{text}>"),
            Kind::Aggregate(_) => format!("<aggr:{text}>"),
            Kind::Bool
            | Kind::By
            | Kind::Without
            | Kind::On
            | Kind::Ignoring
            | Kind::GroupLeft
            | Kind::GroupRight
            | Kind::Fill
            | Kind::FillLeft
            | Kind::FillRight
            | Kind::Offset
            | Kind::Anchored
            | Kind::Smoothed => format!("<{text}>"),
            _ => shortened(text),
        }
    }
}

/// Quoted; of a long text the first ten characters.
fn shortened(text: &str) -> String {
    if text.len() <= 10 {
        return literal::quote(text.as_bytes());
    }
    let head: String = text.chars().take(10).collect();
    format!("{}...", literal::quote(head.as_bytes()))
}
