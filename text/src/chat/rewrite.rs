//! A template's syntax tree → the same tree, in which everything that can build, compare or write without bound goes through
//! a filter of ours, and in which operators mean what they mean in Python.
//!
//! The filters have names that no template can spell: `+`, `==` and so on (operators), `[:]` (slices), `.` (methods), and
//! [`CHECKED`] for values that are about to be compared, called with or printed. `operators` and `methods` define them.
//! Only nodes are wrapped: control flow, scopes and lines stay those of the template.

use minijinja::{
    Value,
    machinery::{
        Span,
        ast::{
            AutoEscape, BinOp, BinOpKind, Block, Call, CallArg, CallBlock, Compare, CompareOp, CompareOpKind,
            Const, Do, EmitExpr, Expr, Extends, Filter, FilterBlock, ForLoop, FromImport, GetAttr, GetItem,
            IfCond, IfExpr, Import, Include, List, Macro, Map, Set, SetBlock, Spanned, Stmt, Template, Test,
            Tuple, UnaryOp, UnaryOpKind, Var, WithBlock,
        },
    },
};

/// Value → the same value, or an error where it is nested too deeply or holds too much. What is lazy becomes a list.
pub(super) const CHECKED: &str = "=";
/// Value → the same value, its text counted as built, without going over what it holds: for results of filters. What is lazy
/// becomes a list.
pub(super) const COUNTED: &str = "#";
/// Value → the same value, to be iterated over; None is nothing that can.
pub(super) const ITERATED: &str = "@for";
pub(super) const ADD: &str = "+";
pub(super) const MULTIPLY: &str = "*";
pub(super) const REMAINDER: &str = "%";
pub(super) const CONCATENATE: &str = "~";
pub(super) const SLICE: &str = "[:]";
pub(super) const METHOD: &str = ".";

/// Filters whose input may be of any size and depth: they look at its surface, or are bounded themselves.
const SHALLOW_FILTERS: &[&str] = &[
    "length",
    "count",
    "first",
    "last",
    "default",
    "d",
    "trim",
    "upper",
    "lower",
    "title",
    "capitalize",
    "int",
    "float",
    "string",
    "tojson",
    "list",
    "reverse",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "replace",
    "join",
    "abs",
    "round",
    "safe",
    "escape",
    "e",
    "indent",
    "attr",
];

/// Tests that compare their operands, or call others that may.
const DEEP_TESTS: &[&str] = &[
    "eq",
    "equalto",
    "==",
    "ne",
    "!=",
    "lt",
    "lessthan",
    "<",
    "le",
    "<=",
    "gt",
    "greaterthan",
    ">",
    "ge",
    ">=",
    "in",
    "sameas",
];

fn statements<'a>(nodes: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    nodes.iter().map(statement).collect()
}

/// A statement, such as the whole template, with its guards.
pub(super) fn statement<'a>(node: &Stmt<'a>) -> Stmt<'a> {
    match node {
        Stmt::Template(n) => {
            Stmt::Template(Spanned::new(Template { children: statements(&n.children) }, n.span()))
        }
        Stmt::EmitExpr(n) => Stmt::EmitExpr(Spanned::new(EmitExpr { expr: expression(&n.expr) }, n.span())),
        // Text of the template is written as values are, so that one place counts both.
        Stmt::EmitRaw(n) => {
            Stmt::EmitExpr(Spanned::new(EmitExpr { expr: constant(Value::from(n.raw), n.span()) }, n.span()))
        }
        Stmt::ForLoop(n) => Stmt::ForLoop(Spanned::new(
            ForLoop {
                target: target(&n.target),
                iter: wrapped(ITERATED, expression(&n.iter)),
                filter_expr: n.filter_expr.as_ref().map(expression),
                recursive: n.recursive,
                body: statements(&n.body),
                else_body: statements(&n.else_body),
            },
            n.span(),
        )),
        Stmt::IfCond(n) => Stmt::IfCond(Spanned::new(
            IfCond {
                expr: expression(&n.expr),
                true_body: statements(&n.true_body),
                false_body: statements(&n.false_body),
            },
            n.span(),
        )),
        Stmt::WithBlock(n) => Stmt::WithBlock(Spanned::new(
            WithBlock {
                assignments: n.assignments.iter().map(|(to, from)| (target(to), expression(from))).collect(),
                body: statements(&n.body),
            },
            n.span(),
        )),
        Stmt::Set(n) => {
            let value = expression(&n.expr);
            // An attribute of a namespace can make what was checked before deeper.
            let value = if matches!(n.target, Expr::GetAttr(_)) { checked(value) } else { value };
            Stmt::Set(Spanned::new(Set { target: target(&n.target), expr: value }, n.span()))
        }
        Stmt::SetBlock(n) => Stmt::SetBlock(Spanned::new(
            SetBlock {
                target: target(&n.target),
                filter: n.filter.as_ref().map(expression),
                body: statements(&n.body),
            },
            n.span(),
        )),
        Stmt::AutoEscape(n) => Stmt::AutoEscape(Spanned::new(
            AutoEscape { enabled: expression(&n.enabled), body: statements(&n.body) },
            n.span(),
        )),
        Stmt::FilterBlock(n) => Stmt::FilterBlock(Spanned::new(
            FilterBlock { filter: expression(&n.filter), body: statements(&n.body) },
            n.span(),
        )),
        Stmt::Block(n) => Stmt::Block(Spanned::new(
            Block { name: n.name, required: n.required, body: statements(&n.body) },
            n.span(),
        )),
        Stmt::Import(n) => {
            Stmt::Import(Spanned::new(Import { expr: expression(&n.expr), name: target(&n.name) }, n.span()))
        }
        Stmt::FromImport(n) => Stmt::FromImport(Spanned::new(
            FromImport {
                expr: expression(&n.expr),
                names: n
                    .names
                    .iter()
                    .map(|(name, alias)| (target(name), alias.as_ref().map(target)))
                    .collect(),
            },
            n.span(),
        )),
        Stmt::Extends(n) => Stmt::Extends(Spanned::new(Extends { name: expression(&n.name) }, n.span())),
        Stmt::Include(n) => Stmt::Include(Spanned::new(
            Include { name: expression(&n.name), ignore_missing: n.ignore_missing },
            n.span(),
        )),
        Stmt::Macro(n) => Stmt::Macro(macro_declaration(n)),
        Stmt::CallBlock(n) => Stmt::CallBlock(Spanned::new(
            CallBlock { call: plain_call(&n.call), macro_decl: macro_declaration(&n.macro_decl) },
            n.span(),
        )),
        Stmt::Continue(n) => Stmt::Continue(Spanned::new(minijinja::machinery::ast::Continue, n.span())),
        Stmt::Break(n) => Stmt::Break(Spanned::new(minijinja::machinery::ast::Break, n.span())),
        Stmt::Do(n) => Stmt::Do(Spanned::new(Do { call: plain_call(&n.call) }, n.span())),
    }
}

fn macro_declaration<'a>(node: &Spanned<Macro<'a>>) -> Spanned<Macro<'a>> {
    Spanned::new(
        Macro {
            name: node.name,
            args: node.args.iter().map(target).collect(),
            defaults: expressions(&node.defaults),
            body: statements(&node.body),
        },
        node.span(),
    )
}

fn expressions<'a>(nodes: &[Expr<'a>]) -> Vec<Expr<'a>> {
    nodes.iter().map(expression).collect()
}

/// What is assigned to: names, attributes of names, and lists of these.
fn target<'a>(node: &Expr<'a>) -> Expr<'a> {
    match node {
        Expr::List(n) => {
            Expr::List(Spanned::new(List { items: n.items.iter().map(target).collect() }, n.span()))
        }
        Expr::Tuple(n) => {
            Expr::Tuple(Spanned::new(Tuple { items: n.items.iter().map(target).collect() }, n.span()))
        }
        Expr::GetAttr(n) => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: target(&n.expr), name: n.name }, n.span()))
        }
        other => expression(other),
    }
}

fn expression<'a>(node: &Expr<'a>) -> Expr<'a> {
    match node {
        Expr::Var(n) => Expr::Var(Spanned::new(Var { id: n.id }, n.span())),
        Expr::Const(n) => constant(n.value.clone(), n.span()),
        Expr::Slice(n) => {
            let none = || constant(Value::from(()), n.span());
            let bound = |bound: &Option<Expr<'a>>| CallArg::Pos(bound.as_ref().map_or_else(none, expression));
            let args = vec![bound(&n.start), bound(&n.stop), bound(&n.step)];
            filter(SLICE, Some(expression(&n.expr)), args, n.span())
        }
        Expr::UnaryOp(n) => {
            let op = if matches!(n.op, UnaryOpKind::Not) { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            Expr::UnaryOp(Spanned::new(UnaryOp { op, expr: expression(&n.expr) }, n.span()))
        }
        Expr::BinOp(n) => binary(n),
        // A chain looks at its middle operands once, which only the compiler can do; one comparison is Python's.
        Expr::Compare(n) if n.ops.len() == 1 => {
            compared(n.ops[0].op, expression(&n.expr), expression(&n.ops[0].expr), n.span())
        }
        Expr::Compare(n) => Expr::Compare(Spanned::new(
            Compare {
                expr: checked(expression(&n.expr)),
                ops: n
                    .ops
                    .iter()
                    .map(|c| CompareOp { op: c.op, expr: checked(expression(&c.expr)) })
                    .collect(),
            },
            n.span(),
        )),
        Expr::IfExpr(n) => Expr::IfExpr(Spanned::new(
            IfExpr {
                test_expr: expression(&n.test_expr),
                true_expr: expression(&n.true_expr),
                false_expr: n.false_expr.as_ref().map(expression),
            },
            n.span(),
        )),
        Expr::Filter(n) => {
            let shallow = SHALLOW_FILTERS.contains(&n.name);
            let input = n.expr.as_ref().map(expression);
            let input = if shallow { input } else { input.map(checked) };
            let filtered = filter(n.name, input, arguments(&n.args), n.span());
            wrapped(COUNTED, if shallow { filtered } else { checked(filtered) })
        }
        Expr::Test(n) => {
            let operand = expression(&n.expr);
            let deep = DEEP_TESTS.contains(&n.name);
            Expr::Test(Spanned::new(
                Test {
                    name: n.name,
                    expr: if deep { checked(operand) } else { operand },
                    args: arguments(&n.args),
                },
                n.span(),
            ))
        }
        Expr::GetAttr(n) => {
            Expr::GetAttr(Spanned::new(GetAttr { expr: expression(&n.expr), name: n.name }, n.span()))
        }
        Expr::GetItem(n) => Expr::GetItem(Spanned::new(
            GetItem { expr: expression(&n.expr), subscript_expr: checked(expression(&n.subscript_expr)) },
            n.span(),
        )),
        Expr::Call(n) => call(n),
        Expr::List(n) => {
            built(Expr::List(Spanned::new(List { items: expressions(&n.items) }, n.span())), &n.items, &[])
        }
        Expr::Tuple(n) => {
            built(Expr::Tuple(Spanned::new(Tuple { items: expressions(&n.items) }, n.span())), &n.items, &[])
        }
        Expr::Map(n) => {
            let keys = n.keys.iter().map(|key| checked(expression(key))).collect();
            let map = Map { keys, values: expressions(&n.values) };
            built(Expr::Map(Spanned::new(map, n.span())), &n.keys, &n.values)
        }
    }
}

/// The filter that compares.
pub(super) fn comparison(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => "==",
        CompareOpKind::Ne => "!=",
        CompareOpKind::Lt => "<",
        CompareOpKind::Lte => "<=",
        CompareOpKind::Gt => ">",
        CompareOpKind::Gte => ">=",
        CompareOpKind::In => "@in",
        CompareOpKind::NotIn => "@not-in",
    }
}

fn compared<'a>(op: CompareOpKind, left: Expr<'a>, right: Expr<'a>, span: Span) -> Expr<'a> {
    filter(comparison(op), Some(checked(left)), vec![CallArg::Pos(checked(right))], span)
}

/// A list, tuple or mapping, checked unless all it holds stands in the template.
fn built<'a>(node: Expr<'a>, items: &[Expr<'a>], others: &[Expr<'a>]) -> Expr<'a> {
    if items.iter().chain(others).all(|item| matches!(item, Expr::Const(_))) { node } else { checked(node) }
}

fn binary<'a>(node: &Spanned<BinOp<'a>>) -> Expr<'a> {
    let (left, right) = (expression(&node.left), expression(&node.right));
    let name = match node.op {
        BinOpKind::Add => ADD,
        BinOpKind::Mul => MULTIPLY,
        BinOpKind::Rem => REMAINDER,
        BinOpKind::Concat => CONCATENATE,
        // Numbers only, of at most 128 bits; or one of the operands.
        BinOpKind::Sub
        | BinOpKind::Div
        | BinOpKind::FloorDiv
        | BinOpKind::Pow
        | BinOpKind::ScAnd
        | BinOpKind::ScOr => {
            return Expr::BinOp(Spanned::new(BinOp { op: node.op, left, right }, node.span()));
        }
        BinOpKind::Eq => return compared(CompareOpKind::Eq, left, right, node.span()),
        BinOpKind::Ne => return compared(CompareOpKind::Ne, left, right, node.span()),
        BinOpKind::Lt => return compared(CompareOpKind::Lt, left, right, node.span()),
        BinOpKind::Lte => return compared(CompareOpKind::Lte, left, right, node.span()),
        BinOpKind::Gt => return compared(CompareOpKind::Gt, left, right, node.span()),
        BinOpKind::Gte => return compared(CompareOpKind::Gte, left, right, node.span()),
        BinOpKind::In => return compared(CompareOpKind::In, left, right, node.span()),
    };
    filter(name, Some(left), vec![CallArg::Pos(right)], node.span())
}

/// A call: of a method by Python's rules, or of a function; the result is checked.
fn call<'a>(node: &Spanned<Call<'a>>) -> Expr<'a> {
    if let Expr::GetAttr(method) = &node.expr
        && !matches!(&method.expr, Expr::Var(var) if var.id == "self")
    {
        let mut args = vec![CallArg::Pos(constant(Value::from(method.name), node.span()))];
        args.extend(arguments(&node.args));
        return filter(METHOD, Some(expression(&method.expr)), args, node.span());
    }
    checked(Expr::Call(plain_call(node)))
}

/// A call that stays one: the target of `call` and `do` blocks.
fn plain_call<'a>(node: &Spanned<Call<'a>>) -> Spanned<Call<'a>> {
    let callee = match &node.expr {
        // The compiler tells functions, blocks and methods by the form of what is called.
        Expr::GetAttr(n) => {
            let object = match &n.expr {
                Expr::Var(var) => Expr::Var(Spanned::new(Var { id: var.id }, n.expr.span())),
                other => expression(other),
            };
            Expr::GetAttr(Spanned::new(GetAttr { expr: object, name: n.name }, n.span()))
        }
        other => expression(other),
    };
    Spanned::new(Call { expr: callee, args: arguments(&node.args) }, node.span())
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    args.iter()
        .map(|arg| match arg {
            CallArg::Pos(e) => CallArg::Pos(checked(expression(e))),
            CallArg::Kwarg(name, e) => CallArg::Kwarg(name, checked(expression(e))),
            CallArg::PosSplat(e) => CallArg::PosSplat(checked(expression(e))),
            CallArg::KwargSplat(e) => CallArg::KwargSplat(checked(expression(e))),
        })
        .collect()
}

fn constant<'a>(value: Value, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(Const { value }, span))
}

fn checked(node: Expr<'_>) -> Expr<'_> {
    wrapped(CHECKED, node)
}

fn wrapped<'a>(name: &'static str, node: Expr<'a>) -> Expr<'a> {
    match &node {
        // A constant is as large as it stands in the template.
        Expr::Const(_) => node,
        Expr::Filter(n) if n.name == CHECKED => node,
        _ => {
            let span = node.span();
            filter(name, Some(node), Vec::new(), span)
        }
    }
}

fn filter<'a>(name: &'a str, expr: Option<Expr<'a>>, args: Vec<CallArg<'a>>, span: Span) -> Expr<'a> {
    Expr::Filter(Spanned::new(Filter { name, expr, args }, span))
}
