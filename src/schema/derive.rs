//! From a value to the structure of its row and the leaves in it.

use super::tree::{Dims, LeafKind, MAX_LEAVES, MAX_RANK, Node, RowKind, RowSchema, too_large};
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::key::KeyKind;
use crate::tensor::TensorView;
use crate::value::{MAX_DEPTH, ValueView};

/// A leaf of one value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LeafValue<'a> {
    Tensor(&'a TensorView<'a>),
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bytes(&'a [u8]),
}

/// The structure of `value`, and its leaves in order. `store_as` down-casts wider floats; `codec` packs tensors.
///
/// # Errors
/// [`Error::TooLarge`] for too deep trees, too many leaves or dimensions; [`Error::Invalid`] for a map that has a
/// name twice, or booleans other than 0 and 1.
pub(crate) fn derive<'a>(
    value: &'a ValueView<'a>,
    key: KeyKind,
    store_as: Option<Dtype>,
    codec: Codec,
) -> Result<(RowSchema, Vec<LeafValue<'a>>)> {
    let mut walk = Walk { store_as, codec, kinds: Vec::new(), values: Vec::new() };
    let tree = walk.node(value, 0)?;
    Ok((RowSchema { key, rows: RowKind::Values, tree, leaves: walk.kinds }, walk.values))
}

struct Walk<'a> {
    store_as: Option<Dtype>,
    codec: Codec,
    kinds: Vec<LeafKind>,
    values: Vec<LeafValue<'a>>,
}

impl<'a> Walk<'a> {
    fn node(&mut self, value: &'a ValueView<'a>, depth: usize) -> Result<Node> {
        if depth > MAX_DEPTH {
            return Err(too_large("the nesting of a value", depth, MAX_DEPTH));
        }
        let (kind, leaf) = match value {
            ValueView::Null => return Ok(Node::Null),
            ValueView::List(items) => return self.nodes(items, depth).map(Node::List),
            ValueView::Tuple(items) => return self.nodes(items, depth).map(Node::Tuple),
            ValueView::Map(items) => return self.map(items, depth),
            ValueView::Tensor(tensor) => (self.tensor(tensor)?, LeafValue::Tensor(tensor)),
            ValueView::Bool(flag) => (LeafKind::Bool, LeafValue::Bool(*flag)),
            ValueView::Int(number) => (LeafKind::Int, LeafValue::Int(*number)),
            ValueView::Float(number) => (LeafKind::Float, LeafValue::Float(*number)),
            ValueView::Str(text) => (LeafKind::Str, LeafValue::Str(text)),
            ValueView::Bytes(bytes) => (LeafKind::Bytes, LeafValue::Bytes(bytes)),
        };
        if self.kinds.len() == MAX_LEAVES {
            return Err(too_large("the number of leaves of a value", MAX_LEAVES + 1, MAX_LEAVES));
        }
        self.kinds.push(kind);
        self.values.push(leaf);
        Ok(Node::Leaf(self.kinds.len() - 1))
    }

    fn nodes(&mut self, items: &'a [ValueView<'a>], depth: usize) -> Result<Vec<Node>> {
        items.iter().map(|item| self.node(item, depth + 1)).collect()
    }

    fn map(&mut self, items: &'a [(&'a str, ValueView<'a>)], depth: usize) -> Result<Node> {
        let mut names = std::collections::HashSet::new();
        let mut nodes = Vec::with_capacity(items.len());
        for (name, item) in items {
            if !names.insert(*name) {
                return Err(Error::invalid(format!(
                    "a map has the name {name:?} twice: give every entry its own name"
                )));
            }
            nodes.push(((*name).to_owned(), self.node(item, depth + 1)?));
        }
        Ok(Node::Map(nodes))
    }

    fn tensor(&self, tensor: &TensorView<'_>) -> Result<LeafKind> {
        if tensor.shape().len() > MAX_RANK {
            return Err(too_large("the number of dimensions of a tensor", tensor.shape().len(), MAX_RANK));
        }
        let source = tensor.dtype();
        source.check_elements(tensor.data())?;
        let dtype = stored_dtype(source, self.store_as);
        Ok(LeafKind::Tensor {
            dtype,
            shape: Dims::Fixed(tensor.shape().to_vec()),
            source_dtype: (dtype != source).then_some(source),
            codec: self.codec.without_level(),
        })
    }
}

/// The dtype in which a tensor of `source` is kept: `store_as` if that is a narrower float, else its own.
pub(crate) fn stored_dtype(source: Dtype, store_as: Option<Dtype>) -> Dtype {
    match store_as {
        Some(target) if matches!(source, Dtype::F32 | Dtype::F64) && target.bits() < source.bits() => target,
        _ => source,
    }
}

/// The structure of rows that are one tensor of `dtype` and `shape` each.
///
/// # Errors
/// [`Error::TooLarge`] for too many dimensions.
pub(crate) fn single_tensor_schema(
    key: KeyKind,
    dtype: Dtype,
    shape: &[usize],
    store_as: Option<Dtype>,
    codec: Codec,
) -> Result<RowSchema> {
    if shape.len() > MAX_RANK {
        return Err(too_large("the number of dimensions of a tensor", shape.len(), MAX_RANK));
    }
    let stored = stored_dtype(dtype, store_as);
    let leaf = LeafKind::Tensor {
        dtype: stored,
        shape: Dims::Fixed(shape.to_vec()),
        source_dtype: (stored != dtype).then_some(dtype),
        codec: codec.without_level(),
    };
    Ok(RowSchema { key, rows: RowKind::Values, tree: Node::Leaf(0), leaves: vec![leaf] })
}
