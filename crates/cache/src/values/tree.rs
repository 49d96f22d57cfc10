//! Converts a module's output to one value per sample, and back to a batch.
//!
//! A row is stored as the tree that the module returned, without the batch dimension. Two things that a value cannot
//! represent are maps with one reserved name: `$each` holds a row of an [`Output::Each`]; `$complex` holds the real
//! view of a tensor whose complex type has no dtype. Names of other maps that start with `$` get another `$`.

use bytes::Bytes;
use tensorcask::{Dtype, MAX_DEPTH, Value};

use crate::error::{Error, Result, invalid};
use crate::framework::Framework;
use crate::values::output::Output;

pub(super) const EACH: &str = "$each";
pub(super) const COMPLEX: &str = "$complex";

/// How tensors whose shapes differ between the samples of a batch are returned.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Ragged {
    /// One by one, as [`Output::Each`].
    #[default]
    List,
    /// As one tensor, padded with this value at the end of each dimension.
    Pad(f64),
}

/// Checks that every batch dimension in `output` has the length `batch`.
///
/// # Errors
/// [`crate::Error::Invalid`], which names the place where it has not.
pub(crate) fn check_batch<F: Framework>(output: &Output<F>, batch: usize) -> Result<()> {
    fn walk<F: Framework>(output: &Output<F>, batch: usize, path: &mut Vec<String>) -> Result<()> {
        let at = |path: &[String]| if path.is_empty() { "the output".to_owned() } else { path.join(".") };
        match output {
            Output::Tensor(tensor) => match F::batch_len(tensor) {
                Some(first) if first == batch => Ok(()),
                first => Err(invalid(format!(
                    "{} has first dimension {}, but {batch} samples were computed: each sample needs a row of its own, \
                     and a list of one item a sample needs the option `lists` set to each",
                    at(path),
                    first.map_or("none".to_owned(), |first| first.to_string())
                ))),
            },
            Output::Each(rows) if rows.len() == batch => Ok(()),
            Output::Each(rows) => Err(invalid(format!(
                "{} has {} rows, but {batch} samples were computed: each sample needs a row of its own",
                at(path),
                rows.len()
            ))),
            Output::Map(items) => items.iter().try_for_each(|(name, item)| {
                path.push(name.clone());
                walk(item, batch, path)?;
                path.truncate(path.len().saturating_sub(1));
                Ok(())
            }),
            Output::List(items) | Output::Tuple(items) => items.iter().enumerate().try_for_each(|(number, item)| {
                path.push(number.to_string());
                walk(item, batch, path)?;
                path.truncate(path.len().saturating_sub(1));
                Ok(())
            }),
            _ => Ok(()),
        }
    }
    check_depth(output)?;
    walk(output, batch, &mut Vec::new())
}

/// Checks that `output` is nested no deeper than a store allows. Uses an explicit stack.
fn check_depth<F: Framework>(output: &Output<F>) -> Result<()> {
    let mut open = vec![(output, 0)];
    while let Some((output, depth)) = open.pop() {
        if depth > MAX_DEPTH {
            return Err(Error::Store(tensorcask::Error::TooLarge {
                what: "the nesting of an output".to_owned(),
                found: depth as u64,
                limit: MAX_DEPTH as u64,
            }));
        }
        match output {
            Output::Map(items) => open.extend(items.iter().map(|(_, item)| (item, depth + 1))),
            Output::Each(items) | Output::List(items) | Output::Tuple(items) => {
                open.extend(items.iter().map(|item| (item, depth + 1)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The dtype of a tensor that can be stored directly.
pub(crate) fn stored_dtype<F: Framework>(tensor: &F::Tensor) -> Result<Dtype> {
    if let Some(dtype) = F::dtype(tensor)? {
        return Ok(dtype);
    }
    let of = F::key_name(tensor)?;
    Err(invalid(format!("tensors of kind {of} cannot be stored: convert the output")))
}

pub(super) fn marked(mark: &str, value: Value) -> Value {
    Value::Map(vec![(mark.to_owned(), value)])
}

/// The value under `mark`, if it is the only item.
pub(super) fn unmarked<'a>(value: &'a Value, mark: &str) -> Option<&'a Value> {
    match value {
        Value::Map(items) => match items.as_slice() {
            [(name, item)] if name == mark => Some(item),
            _ => None,
        },
        _ => None,
    }
}

/// The bytes of a tensor, with a dtype.
struct Leaf {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
    complex: bool,
}

impl Leaf {
    fn new<F: Framework>(tensor: &F::Tensor) -> Result<Self> {
        let host = F::host(tensor)?;
        let real = F::as_real(&host)?;
        let (tensor, complex) = (real.as_ref().unwrap_or(&host), real.is_some());
        Ok(Self { dtype: stored_dtype::<F>(tensor)?, shape: F::shape(tensor), bytes: F::to_bytes(tensor)?, complex })
    }

    fn value(&self, shape: &[usize], bytes: Bytes) -> Result<Value> {
        let tensor = Value::Tensor(tensorcask::Tensor::new(self.dtype, shape, bytes)?);
        Ok(if self.complex { marked(COMPLEX, tensor) } else { tensor })
    }

    /// One value per index of the first dimension.
    fn rows(&self, batch: usize) -> Result<Vec<Value>> {
        let shape = self.shape.get(1..).unwrap_or_default();
        let width = self.bytes.len().checked_div(batch).unwrap_or(0);
        (0..batch).map(|row| self.value(shape, self.bytes.slice(row * width..(row + 1) * width))).collect()
    }
}

/// One value per sample. Copies each tensor once; rows share the copy. O(bytes).
///
/// # Errors
/// [`crate::Error::Invalid`] for types that cannot be stored.
pub(crate) fn split<F: Framework>(output: &Output<F>, batch: usize) -> Result<Vec<Value>> {
    let columns = |items: &[Output<F>]| items.iter().map(|item| split(item, batch)).collect::<Result<Vec<_>>>();
    let plain = |value: Value| Ok(vec![value; batch]);
    match output {
        Output::Tensor(tensor) => Leaf::new::<F>(tensor)?.rows(batch),
        Output::Each(rows) => rows.iter().map(|row| Ok(marked(EACH, whole(row)?))).collect(),
        Output::List(items) => Ok(transpose(columns(items)?, batch).map(Value::List).collect()),
        Output::Tuple(items) => Ok(transpose(columns(items)?, batch).map(Value::Tuple).collect()),
        Output::Map(items) => {
            let names: Vec<String> = items.iter().map(|(name, _)| escaped(name)).collect();
            let columns = items.iter().map(|(_, item)| split(item, batch)).collect::<Result<Vec<_>>>()?;
            let row = |row: Vec<Value>| Value::Map(names.iter().cloned().zip(row).collect());
            Ok(transpose(columns, batch).map(row).collect())
        }
        Output::Null => plain(Value::Null),
        Output::Bool(flag) => plain(Value::Bool(*flag)),
        Output::Int(number) => plain(Value::Int(*number)),
        Output::Float(number) => plain(Value::Float(*number)),
        Output::Str(text) => plain(Value::Str(text.clone())),
    }
}

fn escaped(name: &str) -> String {
    if name.starts_with('$') { format!("${name}") } else { name.to_owned() }
}

pub(super) fn unescaped(name: &str) -> String {
    name.strip_prefix('$').unwrap_or(name).to_owned()
}

/// Transposes columns to rows.
fn transpose(columns: Vec<Vec<Value>>, batch: usize) -> impl Iterator<Item = Vec<Value>> {
    let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
    (0..batch).map(move |_| columns.iter_mut().filter_map(Iterator::next).collect())
}

/// Converts a tree without a batch dimension.
fn whole<F: Framework>(output: &Output<F>) -> Result<Value> {
    let all = |items: &[Output<F>]| items.iter().map(whole).collect::<Result<Vec<_>>>();
    Ok(match output {
        Output::Tensor(tensor) => {
            let leaf = Leaf::new::<F>(tensor)?;
            leaf.value(&leaf.shape, leaf.bytes.clone())?
        }
        Output::Each(_) => return Err(invalid("the rows of an Each cannot themselves be an Each")),
        Output::List(items) => Value::List(all(items)?),
        Output::Tuple(items) => Value::Tuple(all(items)?),
        Output::Map(items) => {
            let item = |(name, item): &(String, Output<F>)| Ok((escaped(name), whole(item)?));
            Value::Map(items.iter().map(item).collect::<Result<_>>()?)
        }
        Output::Null => Value::Null,
        Output::Bool(flag) => Value::Bool(*flag),
        Output::Int(number) => Value::Int(*number),
        Output::Float(number) => Value::Float(*number),
        Output::Str(text) => Value::Str(text.clone()),
    })
}

/// The inverse of [`whole`].
fn unwhole<F: Framework>(value: &Value) -> Result<Output<F>> {
    let all = |items: &[Value]| items.iter().map(unwhole).collect::<Result<Vec<_>>>();
    if let Some(Value::Tensor(tensor)) = unmarked(value, COMPLEX) {
        return F::from_real(F::from_stored(tensor)?).map(Output::Tensor);
    }
    Ok(match value {
        Value::Tensor(tensor) => Output::Tensor(F::from_stored(tensor)?),
        Value::Null => Output::Null,
        Value::Bool(flag) => Output::Bool(*flag),
        Value::Int(number) => Output::Int(*number),
        Value::Float(number) => Output::Float(*number),
        Value::Str(text) => Output::Str(text.clone()),
        Value::Bytes(_) => return Err(invalid("the store holds a byte string, which cannot be an output")),
        Value::List(items) => Output::List(all(items)?),
        Value::Tuple(items) => Output::Tuple(all(items)?),
        Value::Map(items) => {
            let item = |(name, item): &(String, Value)| Ok((unescaped(name), unwhole(item)?));
            Output::Map(items.iter().map(item).collect::<Result<_>>()?)
        }
    })
}

/// [`join`] for tensors of complex types without a dtype; `inner` are their real views.
fn join_complex<F: Framework>(rows: &[&Value], inner: &[&Value], ragged: Ragged) -> Result<Output<F>> {
    let Some(tensors) = tensors(inner) else { return each(rows) };
    if tensors.iter().all(|row| tensors.first().is_some_and(|first| row.shape() == first.shape())) {
        return match stack(&tensors, Ragged::List)? {
            Output::Tensor(real) => F::from_real(real).map(Output::Tensor),
            other => Ok(other),
        };
    }
    let rows = tensors.iter().map(|row| F::from_real(F::from_stored(row)?)).collect::<Result<Vec<_>>>()?;
    match ragged {
        Ragged::List => Ok(Output::each(rows)),
        Ragged::Pad(value) => F::pad(&rows, value).map(Output::Tensor),
    }
}

/// One batch from one value per sample, on the CPU. O(bytes).
///
/// # Errors
/// [`crate::Error::Invalid`] if a plain value differs between samples.
pub(crate) fn join<F: Framework>(rows: &[&Value], ragged: Ragged) -> Result<Output<F>> {
    let Some(first) = rows.first() else { return Ok(Output::Each(Vec::new())) };
    if let Some(inner) = every(rows, |row| unmarked(row, EACH)) {
        let pads = matches!(ragged, Ragged::Pad(_));
        let complex = || every(&inner, |row| unmarked(row, COMPLEX));
        if pads && (tensors(&inner).is_some() || complex().is_some()) {
            return join(&inner, ragged);
        }
        return inner.into_iter().map(unwhole).collect::<Result<_>>().map(Output::Each);
    }
    if let Some(inner) = every(rows, |row| unmarked(row, COMPLEX)) {
        return join_complex(rows, &inner, ragged);
    }
    if let Some(tensors) = tensors(rows) {
        return stack(&tensors, ragged);
    }
    if rows.iter().any(|row| std::mem::discriminant(*row) != std::mem::discriminant(*first)) {
        return each(rows);
    }
    match first {
        Value::Tensor(_) | Value::Bytes(_) => each(rows),
        Value::Map(items) => {
            // The order of names may change between calls, as with a hash map.
            let alike = |row: &&Value| matches!(row, Value::Map(other) if other.len() == items.len());
            let column = |name: &str| every(rows, |row| row.get(name));
            let columns: Option<Vec<_>> = items.iter().map(|(name, _)| Some((name, column(name)?))).collect();
            match columns.filter(|_| rows.iter().all(alike)) {
                Some(columns) => {
                    let join = |(name, column): (&String, Vec<&Value>)| Ok((unescaped(name), join(&column, ragged)?));
                    columns.into_iter().map(join).collect::<Result<_>>().map(Output::Map)
                }
                None => each(rows),
            }
        }
        Value::List(items) if rows.iter().all(|row| matches!(row, Value::List(o) if o.len() == items.len())) => {
            (0..items.len()).map(|number| join(&nth(rows, number), ragged)).collect::<Result<_>>().map(Output::List)
        }
        Value::Tuple(items) if rows.iter().all(|row| matches!(row, Value::Tuple(o) if o.len() == items.len())) => {
            (0..items.len()).map(|number| join(&nth(rows, number), ragged)).collect::<Result<_>>().map(Output::Tuple)
        }
        Value::List(_) | Value::Tuple(_) => each(rows),
        plain => match rows.iter().find(|row| !same(row, plain)) {
            None => unwhole(plain),
            Some(other) => Err(differing(plain, other)),
        },
    }
}

/// The error of plain values that differ between samples.
pub(super) fn differing(one: &Value, other: &Value) -> Error {
    invalid(format!(
        "a plain value of the output is {one:?} for one sample and {other:?} for another: what differs from sample to \
         sample has to be a tensor or an Output::Each, and what depends on the batch cannot be kept"
    ))
}

/// Compares plain values by their bits, so that NaN equals NaN.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}

fn every<'a, T>(rows: &[&'a Value], f: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
    rows.iter().map(|row| f(row)).collect()
}

fn each<F: Framework>(rows: &[&Value]) -> Result<Output<F>> {
    let row = |row: &&Value| unwhole(unmarked(row, EACH).unwrap_or(row));
    rows.iter().map(row).collect::<Result<_>>().map(Output::Each)
}

fn nth<'a>(rows: &[&'a Value], number: usize) -> Vec<&'a Value> {
    let item = |row: &&'a Value| match row {
        Value::List(items) | Value::Tuple(items) => items.get(number),
        _ => None,
    };
    rows.iter().filter_map(item).collect()
}

/// The rows as tensors, if all are tensors of one dtype and rank.
fn tensors<'a>(rows: &[&'a Value]) -> Option<Vec<&'a tensorcask::Tensor>> {
    let tensors: Vec<_> = rows.iter().map(|row| row.as_tensor()).collect::<Option<_>>()?;
    let first = tensors.first()?;
    let alike = |t: &&tensorcask::Tensor| t.dtype() == first.dtype() && t.shape().len() == first.shape().len();
    tensors.iter().all(alike).then_some(tensors)
}

/// One tensor if the shapes are equal, or are padded to be; otherwise each by itself.
fn stack<F: Framework>(rows: &[&tensorcask::Tensor], ragged: Ragged) -> Result<Output<F>> {
    let Some(first) = rows.first() else { return Ok(Output::Each(Vec::new())) };
    if rows.iter().all(|row| row.shape() == first.shape()) {
        let shape: Vec<usize> = [&[rows.len()], first.shape()].concat();
        let mut batch = F::buffer(first.dtype(), &shape)?;
        let width = first.data().len();
        if width > 0 {
            let places = F::buffer_bytes_mut(&mut batch)?.chunks_exact_mut(width);
            places.zip(rows).for_each(|(place, row)| place.copy_from_slice(row.data()));
        }
        return F::finish(batch).map(Output::Tensor);
    }
    let rows = rows.iter().map(|row| F::from_stored(row)).collect::<Result<Vec<_>>>()?;
    match ragged {
        Ragged::List => Ok(Output::each(rows)),
        Ragged::Pad(value) => F::pad(&rows, value).map(Output::Tensor),
    }
}
