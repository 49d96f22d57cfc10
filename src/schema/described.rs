//! The structure of values, as callers see it.

use std::fmt;

use serde::Serialize;
use serde::ser::SerializeStruct;

use super::derive::derive;
use super::paths::leaf_paths;
use super::tree::{Dims, LeafKind, Node, RowSchema};
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::key::KeyKind;
use crate::value::Value;

/// A leaf of a value: a tensor or a scalar.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Leaf {
    path: String,
    kind: LeafKind,
}

impl Leaf {
    /// Where the leaf is in the value: `value`, followed by a JSON pointer, as `value/tokens` or `value/0/mask`. It is
    /// the name of the leaf's column in a segment.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn kind(&self) -> &LeafKind {
        &self.kind
    }

    /// Whether the leaf is a tensor.
    #[must_use]
    pub fn is_tensor(&self) -> bool {
        matches!(self.kind, LeafKind::Tensor { .. })
    }

    /// The dtype of its elements, as stored. Scalars are `BOOL`, `I64` or `F64`; strings and byte strings have none.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        match &self.kind {
            LeafKind::Tensor { dtype, .. } => Some(*dtype),
            LeafKind::Bool => Some(Dtype::Bool),
            LeafKind::Int => Some(Dtype::I64),
            LeafKind::Float => Some(Dtype::F64),
            LeafKind::Str | LeafKind::Bytes => None,
        }
    }

    /// The dtype as put, if the tensor was down-cast ([`crate::Options::store_as`]).
    #[must_use]
    pub fn source_dtype(&self) -> Option<Dtype> {
        if let LeafKind::Tensor { source_dtype, .. } = &self.kind { *source_dtype } else { None }
    }

    /// The dtype that reads return: the one as put if `restores`, else the one as stored.
    pub(crate) fn read_dtype(&self, restores: bool) -> Option<Dtype> {
        self.source_dtype().filter(|_| restores).or_else(|| self.dtype())
    }

    /// The shape, if it is the same in all rows. Scalars have no dimensions; strings and byte strings have no shape.
    #[must_use]
    pub fn shape(&self) -> Option<&[usize]> {
        match &self.kind {
            LeafKind::Tensor { shape: Dims::Fixed(shape), .. } => Some(shape),
            LeafKind::Bool | LeafKind::Int | LeafKind::Float => Some(&[]),
            LeafKind::Tensor { .. } | LeafKind::Str | LeafKind::Bytes => None,
        }
    }

    /// The number of dimensions, if the leaf is a tensor whose shape differs from row to row.
    #[must_use]
    pub fn variable_rank(&self) -> Option<usize> {
        if let LeafKind::Tensor { shape: Dims::Variable { rank }, .. } = &self.kind { Some(*rank) } else { None }
    }

    /// How the tensor is packed.
    #[must_use]
    pub fn codec(&self) -> Codec {
        if let LeafKind::Tensor { codec, .. } = &self.kind { *codec } else { Codec::None }
    }
}

/// The leaf without its path: `F32 [3]`, `F32 [?, ?]` if shapes differ, `int`.
fn write_kind(kind: &LeafKind, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (dtype, shape, source_dtype, codec) = match kind {
        LeafKind::Tensor { dtype, shape, source_dtype, codec } => (dtype, shape, source_dtype, codec),
        LeafKind::Bool => return f.write_str("bool"),
        LeafKind::Int => return f.write_str("int"),
        LeafKind::Float => return f.write_str("float"),
        LeafKind::Str => return f.write_str("str"),
        LeafKind::Bytes => return f.write_str("bytes"),
    };
    match shape {
        Dims::Fixed(shape) => write!(f, "{dtype} {shape:?}")?,
        Dims::Variable { rank } => write!(f, "{dtype} [{}]", vec!["?"; *rank].join(", "))?,
    }
    source_dtype.iter().try_for_each(|source| write!(f, " (put as {source})"))?;
    if *codec == Codec::None { Ok(()) } else { write!(f, " ({})", codec.name()) }
}

impl Serialize for Leaf {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct WithPath<'a> {
            path: &'a str,
            #[serde(flatten)]
            kind: &'a LeafKind,
        }
        WithPath { path: &self.path, kind: &self.kind }.serialize(serializer)
    }
}

/// The structure of values: a tree, and the dtypes and shapes of its leaves. [`Schema::of`] describes a value,
/// [`crate::Reader::schemas`] what a store holds.
///
/// ```
/// use tensorcask::{Schema, Tensor, Value};
///
/// # fn main() -> tensorcask::Result<()> {
/// let value = Value::from([
///     ("pooled", Value::from(Tensor::from_slice(&[2], &[0.5_f32, 0.25])?)),
///     ("label", Value::Int(7)),
/// ]);
/// let schema = Schema::of(&value)?;
/// assert_eq!(schema.to_string(), r#"{"pooled": F32 [2], "label": int}"#);
/// let paths: Vec<&str> = schema.leaves().iter().map(|leaf| leaf.path()).collect();
/// assert_eq!(paths, ["value/pooled", "value/label"]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Schema {
    tree: Node,
    leaves: Vec<Leaf>,
}

impl Schema {
    /// The structure of `value`. O(leaves).
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] or [`crate::Error::Invalid`] for a value that no store accepts.
    pub fn of(value: &Value) -> Result<Self> {
        // The kind of keys is no part of a value's structure.
        derive(&value.view(), KeyKind::U64, None, Codec::None).map(|(schema, _)| Self::of_rows(&schema))
    }

    /// The structure of the values of rows.
    pub(crate) fn of_rows(schema: &RowSchema) -> Self {
        let leaves = leaf_paths(&schema.tree).into_iter().zip(&schema.leaves);
        let leaves = leaves.map(|(path, kind)| Leaf { path, kind: kind.clone() }).collect();
        Self { tree: schema.tree.clone(), leaves }
    }

    /// The leaves, in the order of a walk.
    #[must_use]
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    pub(crate) fn tree(&self) -> &Node {
        &self.tree
    }
}

/// The tree with the dtype and shape of each leaf: `{"tokens": I64 [?], "pooled": F32 [384]}`. Lists are in brackets,
/// tuples in parentheses.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn items<'n>(
            f: &mut fmt::Formatter<'_>,
            leaves: &[Leaf],
            items: impl Iterator<Item = (Option<&'n str>, &'n Node)>,
        ) -> fmt::Result {
            for (position, (name, item)) in items.enumerate() {
                f.write_str(if position == 0 { "" } else { ", " })?;
                name.map_or(Ok(()), |name| write!(f, "{name:?}: "))?;
                node(f, leaves, item)?;
            }
            Ok(())
        }
        fn node(f: &mut fmt::Formatter<'_>, leaves: &[Leaf], tree: &Node) -> fmt::Result {
            let unnamed = |item| (None, item);
            let (open, close) = match tree {
                Node::Null => return f.write_str("null"),
                Node::Leaf(number) => return leaves.get(*number).map_or(Ok(()), |leaf| write_kind(&leaf.kind, f)),
                Node::Map(_) => ("{", "}"),
                Node::List(_) => ("[", "]"),
                Node::Tuple(_) => ("(", ")"),
            };
            f.write_str(open)?;
            match tree {
                Node::Map(named) => items(f, leaves, named.iter().map(|(name, item)| (Some(name.as_str()), item)))?,
                Node::List(all) | Node::Tuple(all) => items(f, leaves, all.iter().map(unnamed))?,
                Node::Null | Node::Leaf(_) => {}
            }
            f.write_str(close)
        }
        node(f, &self.leaves, &self.tree)
    }
}

/// `tree` and `leaves` as in a segment's header, and the path of each leaf.
impl Serialize for Schema {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Schema", 2)?;
        fields.serialize_field("tree", &self.tree)?;
        fields.serialize_field("leaves", &self.leaves)?;
        fields.end()
    }
}
