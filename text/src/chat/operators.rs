//! Operators, slices and checks of values, as the filters that `rewrite` puts in their places: Python's meaning, within the
//! template's bounds.

use std::{cmp::Ordering, sync::Arc};

use minijinja::{
    Environment, Error, Value,
    machinery::ast::CompareOpKind,
    value::{Tuple, ValueKind},
};

use super::{
    environment::as_float,
    limits::{Budget, beyond, wrong},
    python,
    rewrite::{self, comparison},
};

/// Adds the filters to an environment.
pub(super) fn add_to(env: &mut Environment<'_>, budget: &Arc<Budget>) {
    let with = |operator: fn(&Budget, &Value, &Value) -> Result<Value, Error>| {
        let budget = Arc::clone(budget);
        move |left: &Value, right: &Value| operator(&budget, left, right)
    };
    env.add_filter(rewrite::ADD, with(add));
    env.add_filter(rewrite::MULTIPLY, with(multiply));
    env.add_filter(rewrite::REMAINDER, with(remainder));
    env.add_filter(rewrite::CONCATENATE, with(concatenate));
    let bounds = Arc::clone(budget);
    env.add_filter(rewrite::ITERATED, move |value: &Value| iterated(&bounds, value));
    env.add_filter(comparison(CompareOpKind::Eq), |left: &Value, right: &Value| left == right);
    env.add_filter(comparison(CompareOpKind::Ne), |left: &Value, right: &Value| left != right);
    let ordering = |operator: CompareOpKind, holds: fn(Ordering) -> bool| {
        let name = comparison(operator);
        move |left: &Value, right: &Value| ordered(name, left, right).map(holds)
    };
    env.add_filter(comparison(CompareOpKind::Lt), ordering(CompareOpKind::Lt, Ordering::is_lt));
    env.add_filter(comparison(CompareOpKind::Lte), ordering(CompareOpKind::Lte, Ordering::is_le));
    env.add_filter(comparison(CompareOpKind::Gt), ordering(CompareOpKind::Gt, Ordering::is_gt));
    env.add_filter(comparison(CompareOpKind::Gte), ordering(CompareOpKind::Gte, Ordering::is_ge));
    env.add_filter(comparison(CompareOpKind::In), |item: &Value, container: &Value| {
        contains(container, item)
    });
    env.add_filter(comparison(CompareOpKind::NotIn), |item: &Value, container: &Value| {
        contains(container, item).map(|found| !found)
    });
    let bounds = Arc::clone(budget);
    env.add_filter(rewrite::SLICE, move |value: &Value, start: &Value, stop: &Value, step: &Value| {
        slice(&bounds, value, [start, stop, step])
    });
    let bounds = Arc::clone(budget);
    env.add_filter(rewrite::CHECKED, move |value: &Value| {
        bounds.tick()?;
        bounds.check(value)?;
        settled(&bounds, value)
    });
    let bounds = Arc::clone(budget);
    env.add_filter(rewrite::COUNTED, move |value: &Value| {
        bounds.build(value.as_str().map_or(0, str::len))?;
        settled(&bounds, value)
    });
}

/// A value that a loop goes over.
///
/// Errors: it is None.
fn iterated(budget: &Budget, value: &Value) -> Result<Value, Error> {
    budget.tick()?;
    if value.is_none() {
        return Err(wrong("a loop over None (not iterable)"));
    }
    settled(budget, value)
}

/// The value, a list in place of what is computed anew at each use.
pub(super) fn settled(budget: &Budget, value: &Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value.clone());
    }
    Ok(Value::from(elements(budget, value)?))
}

/// What a list, or anything else that can be iterated over, holds.
///
/// Errors: it cannot be iterated over; it is too long.
pub(super) fn elements(budget: &Budget, value: &Value) -> Result<Vec<Value>, Error> {
    let iterator = value.try_iter()?;
    budget.build_elements(iterator.size_hint().0)?;
    let mut items = Vec::new();
    for (index, item) in iterator.enumerate() {
        if index % 1024 == 1023 {
            budget.build_elements(1024)?;
        }
        items.push(item);
    }
    Ok(items)
}

/// What Python calls the type of a value, for messages.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if as_float(value).is_some() => "float",
        ValueKind::Number => "int",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Seq if value.is_tuple() => "tuple",
        ValueKind::Seq | ValueKind::Iterable => "list",
        ValueKind::Map => "dict",
        _ => "object",
    }
}

fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn unsupported(operator: &str, left: &Value, right: &Value) -> Error {
    wrong(format!("{operator} of {} and {} (unsupported)", type_name(left), type_name(right)))
}

/// Two numbers as floats where one is, else as integers.
enum Numbers {
    Integers(i128, i128),
    Floats(f64, f64),
}

fn numbers(left: &Value, right: &Value) -> Option<Numbers> {
    if !is_number(left) || !is_number(right) {
        return None;
    }
    if as_float(left).is_some() || as_float(right).is_some() {
        return Some(Numbers::Floats(f64::try_from(left.clone()).ok()?, f64::try_from(right.clone()).ok()?));
    }
    Some(Numbers::Integers(i128::try_from(left.clone()).ok()?, i128::try_from(right.clone()).ok()?))
}

fn integer(value: Option<i128>) -> Result<Value, Error> {
    let value = value.ok_or_else(|| beyond("an integer is too large"))?;
    Ok(i64::try_from(value).map_or_else(|_| Value::from(value), Value::from))
}

fn add(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    match numbers(left, right) {
        Some(Numbers::Integers(a, b)) => return integer(a.checked_add(b)),
        Some(Numbers::Floats(a, b)) => return Ok(Value::from(a + b)),
        None => {}
    }
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        budget.build(a.len() + b.len())?;
        return Ok(Value::from([a, b].concat()));
    }
    if is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple() {
        let mut items = elements(budget, left)?;
        items.extend(elements(budget, right)?);
        return Ok(if left.is_tuple() { Value::from(Tuple::new(items)) } else { Value::from(items) });
    }
    Err(unsupported("+", left, right))
}

fn multiply(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    match numbers(left, right) {
        Some(Numbers::Integers(a, b)) => return integer(a.checked_mul(b)),
        Some(Numbers::Floats(a, b)) => return Ok(Value::from(a * b)),
        None => {}
    }
    let (repeated, times) = if is_number(right) { (left, right) } else { (right, left) };
    if !is_number(times) || as_float(times).is_some() {
        return Err(unsupported("*", left, right));
    }
    let times = usize::try_from(i128::try_from(times.clone())?.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = repeated.as_str() {
        budget.build(text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(if text.is_empty() { 0 } else { times })));
    }
    if is_list(repeated) {
        let items = elements(budget, repeated)?;
        budget.build_elements(items.len().saturating_mul(times))?;
        let times = if items.is_empty() { 0 } else { times };
        let mut all = Vec::with_capacity(items.len() * times);
        for _ in 0..times {
            all.extend(items.iter().cloned());
        }
        return Ok(if repeated.is_tuple() { Value::from(Tuple::new(all)) } else { Value::from(all) });
    }
    Err(unsupported("*", left, right))
}

/// The remainder with the divisor's sign, or Python's formatting of a string.
fn remainder(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(format) = left.as_str() {
        return python::percent(format, right, budget).map(Value::from);
    }
    match numbers(left, right) {
        Some(Numbers::Integers(_, 0)) => Err(wrong("remainder of a division by zero")),
        Some(Numbers::Integers(a, b)) => {
            let rest = a.checked_rem(b).unwrap_or(0);
            integer(Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }))
        }
        Some(Numbers::Floats(_, 0.0)) => Err(wrong("remainder of a division by zero")),
        Some(Numbers::Floats(a, b)) => {
            let rest = a % b;
            Ok(Value::from(if rest == 0.0 {
                0_f64.copysign(b)
            } else if (rest < 0.0) != (b < 0.0) {
                rest + b
            } else {
                rest
            }))
        }
        None => Err(unsupported("%", left, right)),
    }
}

fn concatenate(budget: &Budget, left: &Value, right: &Value) -> Result<Value, Error> {
    let mut text = python::text(left, budget)?;
    text.push_str(&python::text(right, budget)?);
    budget.build(text.len())?;
    Ok(Value::from(text))
}

/// The order of two numbers, texts, lists or tuples.
///
/// Errors: values that Python does not order.
fn ordered(operator: &str, left: &Value, right: &Value) -> Result<Ordering, Error> {
    let comparable = (is_number(left) && is_number(right))
        || (left.as_str().is_some() && right.as_str().is_some())
        || (is_list(left) && is_list(right) && left.is_tuple() == right.is_tuple());
    if comparable { Ok(left.cmp(right)) } else { Err(unsupported(operator, left, right)) }
}

/// Whether a text holds a text, a mapping a key, or a list an item.
///
/// Errors: anything else.
fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    match (container.kind(), container.as_str(), item.as_str()) {
        (_, Some(container), Some(item)) => Ok(container.contains(item)),
        (ValueKind::Map, ..) => Ok(!container.get_item(item)?.is_undefined()),
        (ValueKind::Seq | ValueKind::Iterable, ..) => Ok(container.try_iter()?.any(|found| found == *item)),
        // Undefined is empty, as it is in a loop.
        (ValueKind::Undefined, ..) => Ok(false),
        _ => Err(unsupported("in", item, container)),
    }
}

/// `value[start:stop:step]` of text, lists and tuples.
fn slice(budget: &Budget, value: &Value, bounds: [&Value; 3]) -> Result<Value, Error> {
    let bound = |bound: &Value| -> Result<Option<i128>, Error> {
        match bound.kind() {
            ValueKind::None => Ok(None),
            ValueKind::Number | ValueKind::Bool if as_float(bound).is_none() => {
                i128::try_from(bound.clone()).map(Some)
            }
            _ => Err(wrong(format!("a slice's bound is a {}, wanted an integer", type_name(bound)))),
        }
    };
    let [start, stop, step] = [bound(bounds[0])?, bound(bounds[1])?, bound(bounds[2])?];
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(wrong("a slice's step cannot be zero"));
    }
    match value.kind() {
        ValueKind::String => {
            let chars: Vec<char> = value.as_str().unwrap_or_default().chars().collect();
            budget.build(chars.len() * 4)?;
            let chosen: String = indices(chars.len(), start, stop, step).map(|i| chars[i]).collect();
            Ok(Value::from(chosen))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = elements(budget, value)?;
            let chosen: Vec<Value> =
                indices(items.len(), start, stop, step).map(|i| items[i].clone()).collect();
            Ok(if value.is_tuple() { Value::from(Tuple::new(chosen)) } else { Value::from(chosen) })
        }
        // As minijinja has it: templates slice messages that are not there.
        ValueKind::Undefined | ValueKind::None => Ok(Value::from(Vec::<Value>::new())),
        _ => Err(wrong(format!("a {} cannot be sliced", type_name(value)))),
    }
}

/// The indices of a slice, by Python's rules for negative and missing bounds.
fn indices(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let len = i128::try_from(len).unwrap_or(i128::MAX);
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let placed = |bound: i128| if bound < 0 { (bound.saturating_add(len)).max(low) } else { bound.min(high) };
    let first = start.map_or(if step > 0 { low } else { high }, placed);
    let end = stop.map_or(if step > 0 { high } else { low }, placed);
    let mut at = first;
    std::iter::from_fn(move || {
        let inside = if step > 0 { at < end } else { at > end };
        let index = usize::try_from(at).ok().filter(|_| inside);
        at = at.saturating_add(step);
        index
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_as_python_has_them() {
        for (len, start, stop, step, wanted) in [
            (5, None, None, 1, vec![0, 1, 2, 3, 4]),
            (5, Some(1), Some(-1), 1, vec![1, 2, 3]),
            (5, None, None, -1, vec![4, 3, 2, 1, 0]),
            (5, Some(3), None, -1, vec![3, 2, 1, 0]),
            (5, Some(-2), Some(0), -1, vec![3, 2, 1]),
            (5, Some(9), Some(-9), -2, vec![4, 2, 0]),
            (5, Some(3), Some(1), 1, vec![]),
            (0, None, None, -1, vec![]),
            (3, Some(i128::MIN), Some(i128::MAX), i128::MAX, vec![0]),
        ] {
            let found: Vec<usize> = indices(len, start, stop, step).collect();
            assert_eq!(found, wanted, "[{start:?}:{stop:?}:{step}] of {len}");
        }
    }
}
