//! What a read copies: leaves by their paths, or all leaves of one structure.

use crate::dtype::Dtype;
use crate::engine::rows::decode::described;
use crate::error::{Error, Result};
use crate::schema::{Node, ROOT, Schema, value_at};
use crate::tensor::Element;
use crate::value::Value;

/// The caller's buffer for one leaf of many values: contiguous, `[keys, …row_shape]`. See
/// [`crate::Reader::get_leaves_into`].
#[derive(Debug)]
pub struct LeafBuffer<'a> {
    leaf: WantedLeaf<'a>,
    out: &'a mut [u8],
}

impl<'a> LeafBuffer<'a> {
    /// A buffer for the leaf at `path` ([`crate::Leaf::path`]): `value/tokens`; `value` for values that are a leaf
    /// themselves. A scalar has an empty shape.
    #[must_use]
    pub fn new<T: Element>(path: &'a str, row_shape: &'a [usize], out: &'a mut [T]) -> Self {
        Self::bytes(path, T::DTYPE, row_shape, bytemuck::cast_slice_mut(out))
    }

    /// [`LeafBuffer::new`] for any dtype, with a buffer of little-endian bytes. Booleans are [`Dtype::Bool`].
    #[must_use]
    pub fn bytes(path: &'a str, dtype: Dtype, row_shape: &'a [usize], out: &'a mut [u8]) -> Self {
        Self { leaf: WantedLeaf::new(path, dtype, row_shape), out }
    }

    /// Reads a slice of the first dimension of each tensor, from `first` on: as many entries as the row shape's first
    /// dimension. The tensors may have more.
    #[must_use]
    pub fn starting_at(mut self, first: usize) -> Self {
        self.leaf.first = Some(first);
        self
    }

    pub(crate) fn split(&mut self) -> (WantedLeaf<'a>, &mut [u8]) {
        (self.leaf, self.out)
    }
}

/// One leaf of what a read copies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedLeaf<'a> {
    pub path: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    /// The first entry of a slice of the first dimension.
    first: Option<usize>,
    /// Bytes of the leaf in a row; set when the buffer is checked.
    pub width: usize,
}

impl<'a> WantedLeaf<'a> {
    /// All of the leaf at `path`.
    pub(crate) fn new(path: &'a str, dtype: Dtype, shape: &'a [usize]) -> Self {
        Self { path, dtype, shape, first: None, width: 0 }
    }

    /// Checks that a buffer of `len_bytes` fits `keys` rows; sets the bytes of a row.
    fn check(&mut self, keys: usize, len_bytes: usize) -> Result<()> {
        let Self { path, dtype, shape, .. } = *self;
        let at = if path == ROOT { String::new() } else { format!("leaf {path}: ") };
        self.width = dtype.tensor_len_bytes(shape).ok_or_else(|| {
            Error::invalid(format!(
                "{at}a {dtype} row cannot have shape {shape:?}: its size overflows or fills no whole bytes"
            ))
        })?;
        if self.width.checked_mul(keys) != Some(len_bytes) {
            return Err(Error::invalid(format!(
                "{at}{keys} {dtype} rows of shape {shape:?} take {} bytes each, but the buffer has {len_bytes}: pass \
                 one contiguous [keys, …shape] buffer",
                self.width
            )));
        }
        if self.first.is_some() && shape.is_empty() {
            return Err(Error::invalid(format!("{at}a row without dimensions has no slice: drop `starting_at`")));
        }
        Ok(())
    }

    /// Where the wanted part begins in a tensor of this dtype and shape, in bytes; `None` if it does not have it.
    pub(crate) fn offset_in(&self, dtype: Dtype, shape: &[usize]) -> Option<usize> {
        if dtype != self.dtype {
            return None;
        }
        let Some(first) = self.first else { return (shape == self.shape).then_some(0) };
        let ((most, of_entry), (len, wanted)) = (shape.split_first()?, self.shape.split_first()?);
        if of_entry != wanted || first.checked_add(*len)? > *most {
            return None;
        }
        // Entries of packed elements may end within a byte.
        let entries_before = [&[first], of_entry].concat();
        dtype.tensor_len_bytes(&entries_before)
    }

    /// Where the wanted part begins in a tensor of this dtype and shape.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it does not have it.
    pub(crate) fn part_of(&self, dtype: Dtype, shape: &[usize]) -> Result<usize> {
        self.offset_in(dtype, shape).ok_or_else(|| self.mismatch(tensor(dtype, shape)))
    }

    /// The error of a leaf that is `found`.
    pub(crate) fn mismatch(&self, found: String) -> Error {
        let at = if self.path == ROOT { String::new() } else { format!(" at {}", self.path) };
        let part = self.first.map_or(String::new(), |first| format!(", from entry {first} of its first dimension on,"));
        Error::Mismatch { expected: format!("{}{part}{at}", tensor(self.dtype, self.shape)), found }
    }
}

fn tensor(dtype: Dtype, shape: &[usize]) -> String {
    format!("a {dtype} tensor of shape {shape:?}")
}

/// What a read copies.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub leaves: Vec<WantedLeaf<'a>>,
    /// The structure that values must have; if there is none, they may have other leaves too.
    pub whole: Option<&'a Schema>,
    /// Bytes of all leaves of a row.
    pub width: usize,
}

impl<'a> Wanted<'a> {
    /// `leaves` of `keys` values, for buffers of these lengths.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a buffer or the mask have the wrong length.
    pub(crate) fn new(mut leaves: Vec<WantedLeaf<'a>>, keys: usize, outs: &[&mut [u8]], mask: usize) -> Result<Self> {
        leaves.iter_mut().zip(outs).try_for_each(|(leaf, out)| leaf.check(keys, out.len()))?;
        if mask != keys {
            return Err(Error::invalid(format!(
                "{keys} keys were passed with a found mask of {mask}: pass one flag a key"
            )));
        }
        let width = leaves.iter().fold(0_usize, |width, leaf| width.saturating_add(leaf.width));
        Ok(Self { leaves, whole: None, width })
    }

    /// All leaves of values of the structure `schema`.
    ///
    /// # Errors
    /// As [`Wanted::new`]; [`Error::Invalid`] if a leaf differs in size from row to row.
    pub(crate) fn whole(
        schema: &'a Schema,
        restores: bool,
        keys: usize,
        outs: &[&mut [u8]],
        mask: usize,
    ) -> Result<Self> {
        if outs.len() != schema.leaves().len() {
            return Err(Error::invalid(format!(
                "{} buffers were passed for values of {} leaves: pass one a leaf, in their order",
                outs.len(),
                schema.leaves().len()
            )));
        }
        let leaf = |leaf: &'a crate::schema::Leaf| match (leaf.read_dtype(restores), leaf.shape()) {
            (Some(dtype), Some(shape)) => Ok(WantedLeaf::new(leaf.path(), dtype, shape)),
            _ => Err(Error::invalid(format!(
                "leaf {} differs in size from row to row: read such values with get_batch, or tensors with \
                 get_ragged_into",
                leaf.path()
            ))),
        };
        let leaves = schema.leaves().iter().map(leaf).collect::<Result<_>>()?;
        Ok(Self { whole: Some(schema), ..Self::new(leaves, keys, outs, mask)? })
    }

    /// The leaves that are wanted of `value`, in their order.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it has another structure, or lacks one.
    pub(crate) fn leaves_of<'v>(&self, value: &'v Value) -> Result<Vec<&'v Value>> {
        if let Some(schema) = self.whole {
            let mut leaves = Vec::with_capacity(self.leaves.len());
            return match collect(schema, schema.tree(), value, &mut leaves) {
                true => Ok(leaves),
                false => Err(other_structure(schema, &Schema::of(value)?)),
            };
        }
        let at = |leaf: &WantedLeaf<'_>| match value_at(value, leaf.path) {
            Some(found) => Ok(found),
            None => Err(leaf.mismatch(described(&Schema::of(value)?))),
        };
        self.leaves.iter().map(at).collect()
    }
}

/// The error of a row whose structure is not the expected one.
pub(crate) fn other_structure(expected: &Schema, found: &Schema) -> Error {
    Error::Mismatch { expected: described(expected), found: described(found) }
}

/// Collects the leaves of a value that has the tree of `schema`; returns whether it has.
fn collect<'v>(schema: &Schema, node: &Node, value: &'v Value, leaves: &mut Vec<&'v Value>) -> bool {
    let mut all = |nodes: &[Node], values: &'v [Value]| {
        nodes.len() == values.len()
            && nodes.iter().zip(values).all(|(node, value)| collect(schema, node, value, leaves))
    };
    match (node, value) {
        (Node::Null, Value::Null) => true,
        (Node::List(nodes), Value::List(values)) | (Node::Tuple(nodes), Value::Tuple(values)) => all(nodes, values),
        (Node::Map(nodes), Value::Map(values)) => {
            nodes.len() == values.len()
                && nodes
                    .iter()
                    .zip(values)
                    .all(|((name, node), (found, value))| name == found && collect(schema, node, value, leaves))
        }
        (Node::Leaf(number), value) => {
            leaves.push(value);
            let is_tensor = schema.leaves().get(*number).is_some_and(crate::schema::Leaf::is_tensor);
            is_tensor == value.as_tensor().is_some()
        }
        _ => false,
    }
}

/// Copies the wanted part of a leaf into `place`.
///
/// # Errors
/// [`Error::Mismatch`] if it is of another dtype or shape.
pub(crate) fn copy_value(leaf: &WantedLeaf<'_>, value: &Value, place: &mut [u8]) -> Result<()> {
    let other = || Ok::<_, Error>(leaf.mismatch(described(&Schema::of(value)?)));
    let scalar = |dtype, bytes: &[u8], place: &mut [u8]| {
        if leaf.offset_in(dtype, &[]).is_none() {
            return Err(other()?);
        }
        place.copy_from_slice(bytes);
        Ok(())
    };
    match value {
        Value::Tensor(tensor) => {
            let start = leaf.part_of(tensor.dtype(), tensor.shape())?;
            let part = tensor.data().get(start..start + leaf.width);
            place.copy_from_slice(part.ok_or_else(|| Error::internal("a part beyond the end of a tensor"))?);
            Ok(())
        }
        Value::Bool(flag) => scalar(Dtype::Bool, &[u8::from(*flag)], place),
        Value::Int(number) => scalar(Dtype::I64, &number.to_le_bytes(), place),
        Value::Float(number) => scalar(Dtype::F64, &number.to_le_bytes(), place),
        _ => Err(other()?),
    }
}
