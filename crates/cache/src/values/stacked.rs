//! Rows of one structure whose leaves have fixed shapes, as one buffer a leaf: the common case, in which no row becomes a
//! value.

use std::sync::Arc;

use bytes::Bytes;
use tensorcask::{Dtype, Schema, Value};

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::values::output::Output;
use crate::values::tree::{COMPLEX, EACH, differing, marked, unescaped, unmarked};

/// The structure of rows. Leaves are numbered in the order of a walk.
#[derive(Debug, PartialEq, Eq)]
pub struct Structure {
    schema: Schema,
    root: Node,
    leaves: Vec<Leaf>,
}

#[derive(Debug, PartialEq, Eq)]
enum Node {
    Tensor(usize),
    /// The real view of a tensor whose complex type has no dtype.
    Complex(usize),
    /// A boolean, an integer or a float, which is the same for all rows of a batch.
    Plain(usize),
    Null,
    Map(Vec<(String, Node)>),
    List(Vec<Node>),
    Tuple(Vec<Node>),
}

#[derive(Debug, PartialEq, Eq)]
struct Leaf {
    is_tensor: bool,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of a row.
    width: usize,
}

impl Structure {
    /// The structure of `value`; `None` if the size of a leaf may differ from row to row, or rows are outputs of their
    /// own ([`Output::Each`]).
    pub(crate) fn of(value: &Value) -> Result<Option<Self>> {
        let schema = Schema::of(value)?;
        let leaf = |leaf: &tensorcask::Leaf| {
            let (dtype, shape) = (leaf.dtype()?, leaf.shape()?.to_vec());
            Some(Leaf { is_tensor: leaf.is_tensor(), dtype, width: dtype.tensor_len_bytes(&shape)?, shape })
        };
        let leaves: Option<Vec<Leaf>> = schema.leaves().iter().map(leaf).collect();
        let root = node(value, &mut 0);
        Ok(leaves.zip(root).map(|(leaves, root)| Self { schema, root, leaves }))
    }

    /// Whether `value` has this structure.
    pub(crate) fn is_of(&self, value: &Value) -> Result<bool> {
        Ok(Schema::of(value)? == self.schema)
    }

    /// The same, as the store describes it.
    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Whether the library has tensors of all dtypes.
    pub(crate) fn is_held<F: Framework>(&self) -> bool {
        self.leaves.iter().all(|leaf| !leaf.is_tensor || F::holds(leaf.dtype))
    }

    /// Whether a batch of no rows determines its output.
    pub(crate) fn has_tensors_only(&self) -> bool {
        self.leaves.iter().all(|leaf| leaf.is_tensor)
    }
}

/// The nodes of `value`, whose leaves are numbered from `next` on; `None` if it holds a row of an [`Output::Each`].
fn node(value: &Value, next: &mut usize) -> Option<Node> {
    let mut leaf = || {
        *next += 1;
        *next - 1
    };
    if let Some(Value::Tensor(_)) = unmarked(value, COMPLEX) {
        return Some(Node::Complex(leaf()));
    }
    if unmarked(value, EACH).is_some() {
        return None;
    }
    Some(match value {
        Value::Null => Node::Null,
        Value::Tensor(_) => Node::Tensor(leaf()),
        Value::List(items) => Node::List(items.iter().map(|item| node(item, next)).collect::<Option<_>>()?),
        Value::Tuple(items) => Node::Tuple(items.iter().map(|item| node(item, next)).collect::<Option<_>>()?),
        Value::Map(items) => {
            Node::Map(items.iter().map(|(name, item)| Some((name.clone(), node(item, next)?))).collect::<Option<_>>()?)
        }
        _ => Node::Plain(leaf()),
    })
}

/// The leaves of `value`, in the order of a walk.
fn collect<'v>(value: &'v Value, leaves: &mut Vec<&'v Value>) {
    match value {
        Value::Null => {}
        Value::List(items) | Value::Tuple(items) => items.iter().for_each(|item| collect(item, leaves)),
        Value::Map(items) => items.iter().for_each(|(_, item)| collect(item, leaves)),
        leaf => leaves.push(leaf),
    }
}

/// The rows of one leaf: a batch tensor while it is filled, or plain values.
#[derive(Debug)]
enum Column<F: Framework> {
    Tensor(F::Buffer),
    Plain(Vec<u8>),
}

impl<F: Framework> Column<F> {
    fn new(leaf: &Leaf, rows: usize) -> Result<Self> {
        if leaf.is_tensor {
            F::buffer(leaf.dtype, &[&[rows], leaf.shape.as_slice()].concat()).map(Self::Tensor)
        } else {
            Ok(Self::Plain(vec![0; rows * leaf.width]))
        }
    }

    fn bytes(&self) -> Result<&[u8]> {
        match self {
            Self::Tensor(buffer) => F::buffer_bytes(buffer),
            Self::Plain(bytes) => Ok(bytes),
        }
    }

    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        match self {
            Self::Tensor(buffer) => F::buffer_bytes_mut(buffer),
            Self::Plain(bytes) => Ok(bytes),
        }
    }
}

/// Rows of one structure, some of which may be missing.
#[derive(Debug)]
pub(crate) struct Stacked<F: Framework> {
    structure: Arc<Structure>,
    columns: Vec<Column<F>>,
    found: Vec<bool>,
}

fn no_row(at: usize) -> crate::error::Error {
    invalid(format!("the batch has no row {at}"))
}

impl<F: Framework> Stacked<F> {
    /// `rows` missing rows.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub(crate) fn new(structure: Arc<Structure>, rows: usize) -> Result<Self> {
        let columns = structure.leaves.iter().map(|leaf| Column::new(leaf, rows)).collect::<Result<_>>()?;
        Ok(Self { structure, columns, found: vec![false; rows] })
    }

    /// Which rows are present.
    pub(crate) fn found(&self) -> &[bool] {
        &self.found
    }

    /// Fills the rows: `read` gets the bytes of each leaf, and the mask of present rows.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) fn fill<T>(&mut self, read: impl FnOnce(&mut [&mut [u8]], &mut [bool]) -> T) -> Result<T> {
        let mut outs = self.columns.iter_mut().map(Column::bytes_mut).collect::<Result<Vec<_>>>()?;
        Ok(read(&mut outs, &mut self.found))
    }

    /// Stores a row, unless it is of another structure. Returns whether it was.
    pub(crate) fn set(&mut self, at: usize, value: &Value) -> Result<bool> {
        if !self.structure.is_of(value)? {
            return Ok(false);
        }
        let mut leaves = Vec::with_capacity(self.columns.len());
        collect(value, &mut leaves);
        for ((column, leaf), value) in self.columns.iter_mut().zip(&self.structure.leaves).zip(leaves) {
            let place = column.bytes_mut()?.get_mut(at * leaf.width..(at + 1) * leaf.width);
            let place = place.ok_or_else(|| no_row(at))?;
            match value {
                Value::Tensor(tensor) => place.copy_from_slice(tensor.data()),
                Value::Bool(flag) => place.copy_from_slice(&[u8::from(*flag)]),
                Value::Int(number) => place.copy_from_slice(&number.to_le_bytes()),
                Value::Float(number) => place.copy_from_slice(&number.to_le_bytes()),
                _ => return Err(invalid("a leaf of a stored row has no fixed size")),
            }
        }
        *self.found.get_mut(at).ok_or_else(|| no_row(at))? = true;
        Ok(true)
    }

    /// Copies a row to another place.
    pub(crate) fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        let there = *self.found.get(from).ok_or_else(|| no_row(from))?;
        *self.found.get_mut(to).ok_or_else(|| no_row(to))? = there;
        for (column, leaf) in self.columns.iter_mut().zip(&self.structure.leaves) {
            column.bytes_mut()?.copy_within(from * leaf.width..(from + 1) * leaf.width, to * leaf.width);
        }
        Ok(())
    }

    /// A value for each row that is present. Copies each leaf once.
    pub(crate) fn into_values(self) -> Result<Vec<Option<Value>>> {
        let copies = self.columns.iter().map(|column| column.bytes().map(Bytes::copy_from_slice));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let row = |(at, there): (usize, &bool)| {
            there.then(|| value(&self.structure.root, &self.structure.leaves, &copies, at)).transpose()
        };
        self.found.iter().enumerate().map(row).collect()
    }

    /// A batch of the rows at `positions`, all of which are present.
    pub(crate) fn pick(&self, positions: &[usize]) -> Result<Output<F>> {
        let mut picked = Self::new(Arc::clone(&self.structure), positions.len())?;
        for ((from, to), leaf) in self.columns.iter().zip(&mut picked.columns).zip(&self.structure.leaves) {
            let bytes = from.bytes()?;
            // Rows may have no elements.
            for (place, &at) in to.bytes_mut()?.chunks_exact_mut(leaf.width.max(1)).zip(positions) {
                place.copy_from_slice(bytes.get(at * leaf.width..(at + 1) * leaf.width).ok_or_else(|| no_row(at))?);
            }
        }
        picked.finish()
    }

    /// The batch, on the CPU. All rows are present.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if a plain value differs between rows.
    pub(crate) fn finish(self) -> Result<Output<F>> {
        let mut columns = self.columns.into_iter();
        output(&self.structure.root, &self.structure.leaves, &mut columns)
    }

    /// Bytes of the rows that are present.
    pub(crate) fn len_bytes(&self) -> usize {
        // A plain value counts as eight bytes.
        let width = |leaf: &Leaf| if leaf.is_tensor { leaf.width } else { 8 };
        let rows = self.found.iter().filter(|found| **found).count();
        rows * self.structure.leaves.iter().map(width).sum::<usize>()
    }
}

/// A plain value from its bytes in a buffer.
fn plain(leaf: &Leaf, bytes: &[u8]) -> Result<Value> {
    let eight = || bytes.try_into().map_err(|_| invalid("a plain value is not eight bytes long"));
    Ok(match leaf.dtype {
        Dtype::Bool => Value::Bool(bytes != [0]),
        Dtype::I64 => Value::Int(i64::from_le_bytes(eight()?)),
        _ => Value::Float(f64::from_le_bytes(eight()?)),
    })
}

/// Row `at` of the leaves whose bytes are `columns`.
fn value(node: &Node, leaves: &[Leaf], columns: &[Bytes], at: usize) -> Result<Value> {
    let all = |nodes: &[Node]| nodes.iter().map(|node| value(node, leaves, columns, at)).collect::<Result<Vec<_>>>();
    let number = match node {
        Node::Tensor(number) | Node::Complex(number) | Node::Plain(number) => *number,
        Node::Null => return Ok(Value::Null),
        Node::List(nodes) => return all(nodes).map(Value::List),
        Node::Tuple(nodes) => return all(nodes).map(Value::Tuple),
        Node::Map(nodes) => {
            let item = |(name, node): &(String, Node)| Ok((name.clone(), value(node, leaves, columns, at)?));
            return nodes.iter().map(item).collect::<Result<_>>().map(Value::Map);
        }
    };
    let (Some(leaf), Some(bytes)) = (leaves.get(number), columns.get(number)) else { return Err(no_row(at)) };
    let bytes = bytes.slice(at * leaf.width..(at + 1) * leaf.width);
    if !leaf.is_tensor {
        return plain(leaf, &bytes);
    }
    let tensor = Value::Tensor(tensorcask::Tensor::new(leaf.dtype, &leaf.shape, bytes)?);
    Ok(if matches!(node, Node::Complex(_)) { marked(COMPLEX, tensor) } else { tensor })
}

/// The output of filled columns, which come in the order of a walk.
fn output<F: Framework>(
    node: &Node,
    leaves: &[Leaf],
    columns: &mut dyn Iterator<Item = Column<F>>,
) -> Result<Output<F>> {
    let mut all = |nodes: &[Node]| nodes.iter().map(|node| output(node, leaves, columns)).collect::<Result<Vec<_>>>();
    let number = match node {
        Node::Tensor(number) | Node::Complex(number) | Node::Plain(number) => *number,
        Node::Null => return Ok(Output::Null),
        Node::List(nodes) => return all(nodes).map(Output::List),
        Node::Tuple(nodes) => return all(nodes).map(Output::Tuple),
        Node::Map(nodes) => {
            let item = |(name, node): &(String, Node)| Ok((unescaped(name), output(node, leaves, columns)?));
            return nodes.iter().map(item).collect::<Result<_>>().map(Output::Map);
        }
    };
    match (columns.next(), leaves.get(number)) {
        (Some(Column::Tensor(buffer)), _) => {
            let tensor = F::finish(buffer)?;
            if matches!(node, Node::Complex(_)) { F::from_real(tensor) } else { Ok(tensor) }.map(Output::Tensor)
        }
        (Some(Column::Plain(bytes)), Some(leaf)) => {
            let mut rows = bytes.chunks_exact(leaf.width);
            let first = rows.next().ok_or_else(|| invalid("a batch without rows has no plain values"))?;
            match rows.find(|row| *row != first) {
                Some(other) => Err(differing(&plain(leaf, first)?, &plain(leaf, other)?)),
                None => Ok(match plain(leaf, first)? {
                    Value::Bool(flag) => Output::Bool(flag),
                    Value::Int(number) => Output::Int(number),
                    Value::Float(number) => Output::Float(number),
                    _ => Output::Null,
                }),
            }
        }
        _ => Err(invalid("a leaf of the batch is missing")),
    }
}
