//! The tree a PromQL text becomes.
//!
//! Every node carries the bytes of the text it came from ([`Span`]): warnings and errors name positions. Numbers of
//! time are milliseconds. What an experimental feature adds is in the tree always; whether it may be *written* is
//! decided by the parser's switches.
//!
//! Source: `prometheus promql/parser/ast.go`, Prometheus 3.14.

use engram_model::{Matcher, Millis};

/// A piece of the query's text: byte offsets, the end not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Byte after the last.
    pub end: u32,
}

/// What an expression yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// One number.
    Scalar,
    /// One string.
    String,
    /// One sample a series.
    Vector,
    /// A range of samples a series.
    Matrix,
}

impl ValueType {
    /// As in error texts: `instant vector`.
    #[must_use]
    pub fn documented(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::String => "string",
            Self::Vector => "instant vector",
            Self::Matrix => "range vector",
        }
    }

    /// As in the API: `vector`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::String => "string",
            Self::Vector => "vector",
            Self::Matrix => "matrix",
        }
    }
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// `1`, `0x10`, `1h30m`, `Inf`.
    Number(NumberLiteral),
    /// `"text"`: bytes, which need not be UTF-8.
    String(StringLiteral),
    /// `(expr)`.
    Paren(Box<ParenExpr>),
    /// `-expr`, `+expr`.
    Unary(Box<UnaryExpr>),
    /// `a + b`.
    Binary(Box<BinaryExpr>),
    /// `sum by (x) (expr)`.
    Aggregate(Box<AggregateExpr>),
    /// `rate(expr)`.
    Call(Box<Call>),
    /// `name{label="value"}`.
    VectorSelector(Box<VectorSelector>),
    /// `selector[5m]`.
    MatrixSelector(Box<MatrixSelector>),
    /// `expr[1h:5m]`.
    Subquery(Box<SubqueryExpr>),
}

impl Expr {
    /// Where the expression stands. `anchored` and `smoothed` at its end are left out, as upstream.
    #[must_use]
    pub fn span(&self) -> Span {
        match self {
            Self::Number(number) => number.span,
            Self::String(string) => string.span,
            Self::Paren(paren) => paren.span,
            Self::Unary(unary) => unary.span,
            Self::Binary(binary) => Span { start: binary.lhs.span().start, end: binary.rhs.span().end },
            Self::Aggregate(aggregate) => aggregate.span,
            Self::Call(call) => call.span,
            Self::VectorSelector(selector) => selector.span,
            Self::MatrixSelector(matrix) => matrix.span,
            Self::Subquery(subquery) => subquery.span,
        }
    }

    /// What the expression yields.
    #[must_use]
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Number(_) => ValueType::Scalar,
            Self::String(_) => ValueType::String,
            Self::Paren(paren) => paren.expr.value_type(),
            Self::Unary(unary) => unary.expr.value_type(),
            Self::Binary(binary) => match (binary.lhs.value_type(), binary.rhs.value_type()) {
                (ValueType::Scalar, ValueType::Scalar) => ValueType::Scalar,
                _ => ValueType::Vector,
            },
            Self::Aggregate(_) | Self::VectorSelector(_) => ValueType::Vector,
            Self::Call(call) => super::functions::function(call.func).map_or(ValueType::Vector, |f| f.returns),
            Self::MatrixSelector(_) | Self::Subquery(_) => ValueType::Matrix,
        }
    }
}

/// A number.
#[derive(Clone, Debug, PartialEq)]
pub struct NumberLiteral {
    /// Its value; a duration's is in seconds.
    pub value: f64,
    /// Whether it was written as a duration, and prints as one.
    pub duration: bool,
    /// Where.
    pub span: Span,
}

/// A string.
#[derive(Clone, Debug, PartialEq)]
pub struct StringLiteral {
    /// Its bytes, escapes resolved.
    pub value: Vec<u8>,
    /// Where.
    pub span: Span,
}

/// An expression in parentheses.
#[derive(Clone, Debug, PartialEq)]
pub struct ParenExpr {
    /// Inside.
    pub expr: Expr,
    /// Where, parentheses included.
    pub span: Span,
}

/// `-` or `+` before an expression.
#[derive(Clone, Debug, PartialEq)]
pub struct UnaryExpr {
    /// Whether it is `-`.
    pub minus: bool,
    /// What follows.
    pub expr: Expr,
    /// Where.
    pub span: Span,
}

/// Binary operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is its symbol, see `as_str`")]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Atan2,
    Eq,
    NotEq,
    Less,
    Greater,
    LessEq,
    GreaterEq,
    And,
    Or,
    Unless,
    /// `</`: keep a histogram's observations below.
    TrimUpper,
    /// `>/`: keep a histogram's observations above.
    TrimLower,
}

impl BinaryOp {
    /// As written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Atan2 => "atan2",
            Self::Eq => "==",
            Self::NotEq => "!=",
            Self::Less => "<",
            Self::Greater => ">",
            Self::LessEq => "<=",
            Self::GreaterEq => ">=",
            Self::And => "and",
            Self::Or => "or",
            Self::Unless => "unless",
            Self::TrimUpper => "</",
            Self::TrimLower => ">/",
        }
    }

    /// `== != < > <= >=`.
    #[must_use]
    pub fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::NotEq | Self::Less | Self::Greater | Self::LessEq | Self::GreaterEq)
    }

    /// `and or unless`.
    #[must_use]
    pub fn is_set(self) -> bool {
        matches!(self, Self::And | Self::Or | Self::Unless)
    }
}

/// How many series of one side may meet one of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Cardinality {
    /// One to one.
    #[default]
    OneToOne,
    /// `group_left`.
    ManyToOne,
    /// `group_right`.
    OneToMany,
    /// Set operators.
    ManyToMany,
}

/// How two vectors are matched.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct VectorMatching {
    /// How many may meet.
    pub cardinality: Cardinality,
    /// Labels of `on (…)` or `ignoring (…)`.
    pub labels: Vec<String>,
    /// Whether it is `on`.
    pub on: bool,
    /// Labels taken over from the "one" side.
    pub include: Vec<String>,
    /// `fill_left (v)`, `fill (v)`: value for a series missing on the left.
    pub fill_left: Option<f64>,
    /// `fill_right (v)`, `fill (v)`: value for a series missing on the right.
    pub fill_right: Option<f64>,
}

/// `lhs op rhs`.
#[derive(Clone, Debug, PartialEq)]
pub struct BinaryExpr {
    /// The operator.
    pub op: BinaryOp,
    /// Where the operator itself stands.
    pub op_span: Span,
    /// Left.
    pub lhs: Expr,
    /// Right.
    pub rhs: Expr,
    /// How series are matched; `None` unless both sides are vectors.
    pub matching: Option<VectorMatching>,
    /// `bool`: a comparison yields 0 or 1.
    pub return_bool: bool,
}

/// Aggregation operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is its word, see `as_str`")]
pub enum AggregateOp {
    Sum,
    Avg,
    Count,
    Min,
    Max,
    Group,
    Stddev,
    Stdvar,
    TopK,
    BottomK,
    CountValues,
    Quantile,
    LimitK,
    LimitRatio,
}

impl AggregateOp {
    /// As written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::Count => "count",
            Self::Min => "min",
            Self::Max => "max",
            Self::Group => "group",
            Self::Stddev => "stddev",
            Self::Stdvar => "stdvar",
            Self::TopK => "topk",
            Self::BottomK => "bottomk",
            Self::CountValues => "count_values",
            Self::Quantile => "quantile",
            Self::LimitK => "limitk",
            Self::LimitRatio => "limit_ratio",
        }
    }

    /// Whether it takes a parameter before the vector.
    #[must_use]
    pub fn has_param(self) -> bool {
        matches!(
            self,
            Self::TopK | Self::BottomK | Self::CountValues | Self::Quantile | Self::LimitK | Self::LimitRatio
        )
    }
}

/// `op by (grouping) (param, expr)`.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateExpr {
    /// The operator.
    pub op: AggregateOp,
    /// The vector.
    pub expr: Expr,
    /// The parameter.
    pub param: Option<Expr>,
    /// Labels of `by` or `without`.
    pub grouping: Vec<String>,
    /// Whether it is `without`.
    pub without: bool,
    /// Where.
    pub span: Span,
}

/// `func(args)`. The name is one of the function table's.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The function's name.
    pub func: &'static str,
    /// The arguments as written.
    pub args: Vec<Expr>,
    /// Where.
    pub span: Span,
}

/// `@` with a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum At {
    /// `@ 12.5`
    Time(Millis),
    /// `@ start()`
    Start,
    /// `@ end()`
    End,
}

/// `anchored` or `smoothed` after a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Extension {
    /// Neither.
    #[default]
    None,
    /// The last sample before the window counts as at its start.
    Anchored,
    /// Values at the window's edges are interpolated.
    Smoothed,
}

/// `name{…} @ … offset …`.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorSelector {
    /// The metric's name as written before the braces (`None`: `{…}`, also with a quoted name inside).
    pub name: Option<String>,
    /// All matchers, in the order the text has them; a `__name__` matcher for the name is the last one, as upstream.
    pub matchers: Vec<Matcher>,
    /// `offset 5m`, in milliseconds; kept at 0 while `offset_expr` is not evaluated.
    pub offset_ms: i64,
    /// An offset that is an expression.
    pub offset_expr: Option<Box<DurationExpr>>,
    /// `@`.
    pub at: Option<At>,
    /// `anchored`, `smoothed`.
    pub extension: Extension,
    /// Where.
    pub span: Span,
}

/// `selector[range]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSelector {
    /// What is selected.
    pub selector: VectorSelector,
    /// The range in milliseconds; 0 while `range_expr` is not evaluated.
    pub range_ms: i64,
    /// A range that is an expression.
    pub range_expr: Option<Box<DurationExpr>>,
    /// Where, with modifiers.
    pub span: Span,
}

/// `expr[range:step] @ … offset …`.
#[derive(Clone, Debug, PartialEq)]
pub struct SubqueryExpr {
    /// What is evaluated.
    pub expr: Expr,
    /// The range in milliseconds.
    pub range_ms: i64,
    /// A range that is an expression.
    pub range_expr: Option<Box<DurationExpr>>,
    /// The step in milliseconds; 0: the engine's default.
    pub step_ms: i64,
    /// A step that is an expression.
    pub step_expr: Option<Box<DurationExpr>>,
    /// `offset`.
    pub offset_ms: i64,
    /// An offset that is an expression.
    pub offset_expr: Option<Box<DurationExpr>>,
    /// `@`.
    pub at: Option<At>,
    /// Where.
    pub span: Span,
}

/// An expression of durations, evaluated before the query runs: its leaves are seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct DurationExpr {
    /// What it is.
    pub kind: DurationKind,
    /// Whether it stood in parentheses, and prints so.
    pub wrapped: bool,
    /// Where.
    pub span: Span,
}

/// See [`DurationExpr`].
#[derive(Clone, Debug, PartialEq)]
pub enum DurationKind {
    /// A number or a duration.
    Number(NumberLiteral),
    /// `step()`: the query's step.
    Step,
    /// `range()`: the query's length.
    Range,
    /// `-x`, `+x`.
    Unary {
        /// Whether it is `-`.
        minus: bool,
        /// What follows.
        operand: Box<DurationExpr>,
    },
    /// `x + y`; `+ - * / % ^`.
    Binary {
        /// The operator.
        op: BinaryOp,
        /// Left.
        lhs: Box<DurationExpr>,
        /// Right.
        rhs: Box<DurationExpr>,
    },
    /// `min(x, y)` of durations, and `min_of`.
    Min(Box<DurationExpr>, Box<DurationExpr>),
    /// `max(x, y)` of durations, and `max_of`.
    Max(Box<DurationExpr>, Box<DurationExpr>),
}
