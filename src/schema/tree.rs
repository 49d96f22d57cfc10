//! The tree of a row's value, and the header of a segment.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::key::{HashSeed, KeyKind};
use crate::names::SegmentId;
use crate::value::{MAX_DEPTH, Value};

/// Most leaves of a value tree.
pub const MAX_LEAVES: usize = 4096;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 32;

/// A node of a value tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Node {
    /// The leaf with this number; leaves are numbered in the order of a walk.
    Leaf(usize),
    Null,
    Map(Vec<(String, Node)>),
    List(Vec<Node>),
    Tuple(Vec<Node>),
}

/// The shape of a tensor leaf.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Dims {
    /// All rows have this shape.
    Fixed(Vec<usize>),
    /// Shapes differ from row to row; their rank does not.
    Variable { rank: usize },
}

/// What a leaf holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum LeafKind {
    Tensor {
        /// The dtype as stored.
        dtype: Dtype,
        shape: Dims,
        /// The dtype as put, if it was down-cast.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_dtype: Option<Dtype>,
        #[serde(default)]
        codec: Codec,
    },
    Bool,
    Int,
    Float,
    Str,
    Bytes,
}

/// How the bytes of a leaf lie in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// `width` bytes a row.
    Fixed { width: usize },
    /// One bit a row.
    Bits,
    /// Offsets in units of `unit` bytes, and `rank` dimensions a row (0: none are kept).
    Variable { unit: usize, rank: usize },
}

impl LeafKind {
    /// How the leaf's bytes lie. `None` if its size overflows.
    pub(crate) fn storage(&self) -> Option<Storage> {
        Some(match self {
            Self::Tensor { dtype, shape, codec, .. } => match (shape, codec) {
                (Dims::Fixed(shape), Codec::None) => Storage::Fixed { width: dtype.tensor_len_bytes(shape)? },
                (Dims::Fixed(_), _) => Storage::Variable { unit: 1, rank: 0 },
                (Dims::Variable { rank }, Codec::None) => {
                    Storage::Variable { unit: dtype.unit_len_bytes(), rank: *rank }
                }
                (Dims::Variable { rank }, _) => Storage::Variable { unit: 1, rank: *rank },
            },
            Self::Bool => Storage::Bits,
            Self::Int | Self::Float => Storage::Fixed { width: 8 },
            Self::Str | Self::Bytes => Storage::Variable { unit: 1, rank: 0 },
        })
    }
}

/// Whether rows hold values or are tombstones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowKind {
    Values,
    Tombstones,
}

/// The structure of rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct RowSchema {
    pub key: KeyKind,
    pub rows: RowKind,
    pub tree: Node,
    pub leaves: Vec<LeafKind>,
}

/// The JSON header in a segment's schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Format version.
    pub format: u32,
    /// The store's identity.
    pub store: uuid::Uuid,
    pub lane: u16,
    pub sequence: u64,
    /// [`crate::key::KeyHasher::id`].
    pub hash: u8,
    /// From version 2 on; before that, hashes have the seed 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_seed: Option<HashSeed>,
    /// Whether compaction wrote it: it then has every live row of the segments that it replaces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compacted: bool,
    /// Whether each row has a commit timestamp of its own; see [`crate::schema::RowLayout::has_times`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub row_times: bool,
    #[serde(flatten)]
    pub schema: RowSchema,
}

impl Header {
    /// The segment's name within its store.
    pub(crate) fn id(&self) -> SegmentId {
        SegmentId { lane: self.lane, sequence: self.sequence }
    }
}

impl RowSchema {
    /// The structure of tombstones.
    pub(crate) fn tombstones(key: KeyKind) -> Self {
        Self { key, rows: RowKind::Tombstones, tree: Node::Null, leaves: Vec::new() }
    }

    /// Whether rows are tombstones.
    pub(crate) fn is_tombstones(&self) -> bool {
        self.rows == RowKind::Tombstones
    }

    /// The dtype and shape of rows that are a single tensor of one shape.
    pub(crate) fn single_tensor(&self) -> Option<(Dtype, &[usize], &LeafKind)> {
        match (&self.tree, self.leaves.as_slice()) {
            (Node::Leaf(0), [leaf @ LeafKind::Tensor { dtype, shape: Dims::Fixed(shape), .. }]) => {
                Some((*dtype, shape, leaf))
            }
            _ => None,
        }
    }

    /// The same structure with shapes that may differ from row to row.
    pub(crate) fn with_variable_shapes(&self) -> Self {
        let mut schema = self.clone();
        for leaf in &mut schema.leaves {
            if let LeafKind::Tensor { shape, .. } = leaf
                && let Dims::Fixed(dims) = shape
                && !dims.is_empty()
            {
                *shape = Dims::Variable { rank: dims.len() };
            }
        }
        schema
    }

    /// Checks everything that later code relies on, in a schema from disk.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.leaves.len() > MAX_LEAVES {
            return Err(format!("a row has {} leaves, more than {MAX_LEAVES}", self.leaves.len()));
        }
        let mut next = 0;
        check_node(&self.tree, 0, &mut next)?;
        if next != self.leaves.len() {
            return Err(format!("the tree names {next} leaves, but {} are described", self.leaves.len()));
        }
        if self.is_tombstones() && !self.leaves.is_empty() {
            return Err("tombstones have leaves".into());
        }
        for leaf in &self.leaves {
            let rank = match leaf {
                LeafKind::Tensor { shape: Dims::Fixed(shape), .. } => shape.len(),
                LeafKind::Tensor { shape: Dims::Variable { rank }, .. } => *rank,
                _ => 0,
            };
            match leaf.storage() {
                Some(Storage::Fixed { width }) if width > i32::MAX as usize => {
                    return Err(format!("a row of {width} bytes is larger than the format allows"));
                }
                Some(_) if rank <= MAX_RANK => {}
                _ => return Err(format!("the size or rank of leaf {leaf:?} is out of range")),
            }
        }
        Ok(())
    }

    /// Builds a value from its leaves.
    pub(crate) fn assemble(&self, leaf: &mut dyn FnMut(usize) -> Result<Value>) -> Result<Value> {
        assemble_node(&self.tree, leaf)
    }
}

fn check_node(node: &Node, depth: usize, next: &mut usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("the tree is nested deeper than {MAX_DEPTH}"));
    }
    match node {
        Node::Null => Ok(()),
        Node::Leaf(leaf) if leaf == next => {
            *next += 1;
            Ok(())
        }
        Node::Leaf(leaf) => Err(format!("leaf {leaf} found where leaf {next} was expected")),
        Node::Map(items) => {
            let mut names = HashSet::new();
            for (name, item) in items {
                if !names.insert(name) {
                    return Err(format!("a map has the name {name:?} twice"));
                }
                check_node(item, depth + 1, next)?;
            }
            Ok(())
        }
        Node::List(items) | Node::Tuple(items) => items.iter().try_for_each(|item| check_node(item, depth + 1, next)),
    }
}

fn assemble_node(node: &Node, leaf: &mut dyn FnMut(usize) -> Result<Value>) -> Result<Value> {
    let mut all = |items: &[Node]| items.iter().map(|item| assemble_node(item, leaf)).collect::<Result<Vec<_>>>();
    Ok(match node {
        Node::Null => Value::Null,
        Node::List(items) => Value::List(all(items)?),
        Node::Tuple(items) => Value::Tuple(all(items)?),
        Node::Leaf(number) => return leaf(*number),
        Node::Map(items) => Value::Map(
            items
                .iter()
                .map(|(name, item)| Ok((name.clone(), assemble_node(item, leaf)?)))
                .collect::<Result<Vec<_>>>()?,
        ),
    })
}

/// The error of a value that exceeds a limit of the format.
pub(crate) fn too_large(what: &str, found: usize, limit: usize) -> Error {
    Error::TooLarge { what: what.into(), found: found as u64, limit: limit as u64 }
}
