//! Function calls and aggregations.

use super::super::ast::{AggregateExpr, AggregateOp, Call, Expr, Span};
use super::super::functions::function;
use super::super::literal;
use super::super::token::{Kind, Token};
use super::{Parser, Result, Tree};

/// Arguments in parentheses, and the height of the highest.
struct Arguments {
    list: Vec<Expr>,
    below: u32,
}

/// Labels of `by` or `without`.
#[derive(Default)]
struct Grouping {
    labels: Vec<String>,
    without: bool,
}

impl<'a> Parser<'a> {
    /// A call; its name is taken, `(` comes next.
    pub(super) fn call(&mut self, name: Token<'a>) -> Result<Tree> {
        let args = self.arguments()?;
        let quoted = literal::quote(name.text.as_bytes());
        let Some(function) = function(name.text) else {
            return self.fail(name.span, format!("unknown function with name {quoted}"));
        };
        if function.experimental && !self.switches.experimental_functions {
            return self.fail(name.span, format!("function {quoted} is not enabled"));
        }
        let span = Span { start: name.span.start, end: self.taken_end };
        self.tree(Expr::Call(Box::new(Call { func: function.name, args: args.list, span })), args.below)
    }

    /// An aggregation; its operator is taken, `by`, `without` or `(` comes next.
    pub(super) fn aggregation(&mut self, op: AggregateOp, name: Span) -> Result<Tree> {
        let before = self.grouping()?;
        let mut args = self.arguments()?;
        let grouping = match before {
            Some(grouping) => grouping,
            None => self.grouping()?.unwrap_or_default(),
        };
        let span = Span { start: name.start, end: self.taken_end };
        if args.list.is_empty() {
            return self.fail(span, "no arguments for aggregate expression provided");
        }
        if matches!(op, AggregateOp::LimitK | AggregateOp::LimitRatio) && !self.switches.experimental_functions {
            let msg = format!(
                "{}() is experimental and must be enabled with --enable-feature=promql-experimental-functions",
                op.as_str()
            );
            return self.fail(span, msg);
        }
        let (wanted, got) = (1 + usize::from(op.has_param()), args.list.len());
        match (args.list.pop(), args.list.pop()) {
            (Some(expr), param) if wanted == got => {
                let Grouping { labels: grouping, without } = grouping;
                let expr = Expr::Aggregate(Box::new(AggregateExpr { op, expr, param, grouping, without, span }));
                self.tree(expr, args.below)
            }
            _ => {
                let msg = format!(
                    "wrong number of arguments for aggregate expression provided, expected {wanted}, got {got}"
                );
                self.fail(span, msg)
            }
        }
    }

    fn grouping(&mut self) -> Result<Option<Grouping>> {
        let without = match self.peek()?.kind {
            Kind::By => false,
            Kind::Without => true,
            _ => return Ok(None),
        };
        self.take();
        Ok(Some(Grouping { labels: self.label_list()?, without }))
    }

    fn arguments(&mut self) -> Result<Arguments> {
        let open = self.expect(Kind::LeftParen)?;
        let mut args = Arguments { list: Vec::new(), below: 0 };
        if self.accept(Kind::RightParen)?.is_some() {
            return Ok(args);
        }
        loop {
            let arg = self.nested(open.span, |p| p.binary(0))?;
            args.below = args.below.max(arg.height);
            args.list.push(arg.expr);
            let Some(comma) = self.accept(Kind::Comma)? else {
                self.expect(Kind::RightParen)?;
                return Ok(args);
            };
            if !self.peek()?.kind.starts_expression() {
                return self.fail(comma.span, "trailing commas not allowed in function call args");
            }
        }
    }
}
