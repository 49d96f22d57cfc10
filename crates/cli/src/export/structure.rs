//! The structure of the values of an Arrow file, as recorded in its header. Column names alone do not distinguish lists
//! from tuples or from maps whose names are numbers, and an empty list or map has no column.

use serde_json::{Value as Json, json};
use tensorcask::Value;

/// The structure of a value: its maps, lists and tuples, without the leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Structure {
    Leaf,
    Map(Vec<(String, Structure)>),
    List(Vec<Structure>),
    Tuple(Vec<Structure>),
}

impl Structure {
    /// The structure of `value`.
    pub(crate) fn of(value: &Value) -> Self {
        match value {
            Value::Map(items) => Self::Map(items.iter().map(|(name, item)| (name.clone(), Self::of(item))).collect()),
            Value::List(items) => Self::List(items.iter().map(Self::of).collect()),
            Value::Tuple(items) => Self::Tuple(items.iter().map(Self::of).collect()),
            _ => Self::Leaf,
        }
    }

    /// Whether `value` has this structure.
    pub(crate) fn is_of(&self, value: &Value) -> bool {
        let all = |structures: &[Self], items: &[Value]| {
            structures.len() == items.len() && structures.iter().zip(items).all(|(own, item)| own.is_of(item))
        };
        match (self, value) {
            (Self::Map(structures), Value::Map(items)) => {
                structures.len() == items.len()
                    && structures.iter().zip(items).all(|(own, item)| own.0 == item.0 && own.1.is_of(&item.1))
            }
            (Self::List(structures), Value::List(items)) | (Self::Tuple(structures), Value::Tuple(items)) => {
                all(structures, items)
            }
            (Self::Leaf, value) => !matches!(value, Value::Map(_) | Value::List(_) | Value::Tuple(_)),
            _ => false,
        }
    }

    /// Whether a map, list or tuple in it is empty, and so has no column.
    pub(crate) fn has_empty(&self) -> bool {
        match self {
            Self::Leaf => false,
            Self::Map(items) => items.is_empty() || items.iter().any(|(_, item)| item.has_empty()),
            Self::List(items) | Self::Tuple(items) => items.is_empty() || items.iter().any(Self::has_empty),
        }
    }

    /// The header of a file of such values with the columns `names`; `None` if the value is a single leaf.
    pub(crate) fn header(&self, names: &[&str]) -> Option<String> {
        let tree = if *self == Self::Leaf { return None } else { self.tree(&mut 0) };
        Some(json!({ "tree": tree, "columns": names }).to_string())
    }

    fn tree(&self, leaves: &mut usize) -> Json {
        match self {
            Self::Leaf => {
                *leaves += 1;
                json!({ "leaf": *leaves - 1 })
            }
            Self::Map(items) => {
                json!({ "map": items.iter().map(|(name, item)| json!([name, item.tree(leaves)])).collect::<Vec<_>>() })
            }
            Self::List(items) => json!({ "list": items.iter().map(|item| item.tree(leaves)).collect::<Vec<_>>() }),
            Self::Tuple(items) => json!({ "tuple": items.iter().map(|item| item.tree(leaves)).collect::<Vec<_>>() }),
        }
    }
}
