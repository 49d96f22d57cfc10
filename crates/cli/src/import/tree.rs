//! How the columns of a table form the value of a row.

use arrow::datatypes::Schema;
use serde_json::Value as Json;
use tensorcask::{MAX_DEPTH, Value};

/// The structure of a value, with columns as leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree {
    /// The column at this position among the columns of values.
    Leaf(usize),
    Null,
    Map(Vec<(String, Tree)>),
    List(Vec<Tree>),
    Tuple(Vec<Tree>),
}

impl Tree {
    /// The value of the next row.
    pub(crate) fn next(&self, cells: &mut [std::vec::IntoIter<Value>]) -> Value {
        match self {
            Self::Leaf(at) => cells.get_mut(*at).and_then(Iterator::next).unwrap_or(Value::Null),
            Self::Null => Value::Null,
            Self::Map(items) => Value::Map(items.iter().map(|(name, item)| (name.clone(), item.next(cells))).collect()),
            Self::List(items) => Value::List(items.iter().map(|item| item.next(cells)).collect()),
            Self::Tuple(items) => Value::Tuple(items.iter().map(|item| item.next(cells)).collect()),
        }
    }

    /// The structure for columns called `names`: from the header of a segment or an export; else the column itself if
    /// there is one; else by path if all names are `value` and a JSON pointer, as in plain exports; else a map.
    pub(crate) fn of(schema: &Schema, names: &[&str]) -> Result<Self, String> {
        if let Some(tree) = header(schema, names)? {
            return match tree.leaves() {
                leaves if leaves == names.len() => Ok(tree),
                leaves => Err(format!("its header names {leaves} columns of values, but the file has {}", names.len())),
            };
        }
        if let [_] = names
            && !names.iter().any(|name| name.starts_with("value/"))
        {
            return Ok(Self::Leaf(0));
        }
        if names.iter().all(|name| name.starts_with("value/")) {
            let mut root = Self::Map(Vec::new());
            for (at, name) in names.iter().enumerate() {
                let parts = name.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~"));
                root.insert(&parts.collect::<Vec<_>>(), at)
                    .map_err(|()| format!("the column {name:?} is nested in another column"))?;
            }
            return Ok(root.with_lists());
        }
        Ok(Self::Map(names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), Self::Leaf(at))).collect()))
    }

    fn leaves(&self) -> usize {
        match self {
            Self::Leaf(_) => 1,
            Self::Null => 0,
            Self::Map(items) => items.iter().map(|(_, item)| item.leaves()).sum(),
            Self::List(items) | Self::Tuple(items) => items.iter().map(Self::leaves).sum(),
        }
    }

    fn insert(&mut self, path: &[String], at: usize) -> Result<(), ()> {
        let (Self::Map(items), Some((first, rest))) = (self, path.split_first()) else { return Err(()) };
        let position = items.iter().position(|(name, _)| name == first);
        if rest.is_empty() {
            return if position.is_some() {
                Err(())
            } else {
                items.push((first.clone(), Self::Leaf(at)));
                Ok(())
            };
        }
        let position = position.unwrap_or_else(|| {
            items.push((first.clone(), Self::Map(Vec::new())));
            items.len() - 1
        });
        items.get_mut(position).map_or(Err(()), |(_, item)| item.insert(rest, at))
    }

    /// Replaces maps whose names are 0, 1, 2, … by lists.
    fn with_lists(self) -> Self {
        let Self::Map(items) = self else { return self };
        let items: Vec<(String, Self)> = items.into_iter().map(|(name, item)| (name, item.with_lists())).collect();
        if items.iter().enumerate().all(|(at, (name, _))| *name == at.to_string()) {
            return Self::List(items.into_iter().map(|(_, item)| item).collect());
        }
        Self::Map(items)
    }
}

/// The structure in the header of a segment or an export.
fn header(schema: &Schema, names: &[&str]) -> Result<Option<Tree>, String> {
    let Some(text) = schema.metadata().get("tensorcask") else { return Ok(None) };
    let json: Json = serde_json::from_str(text).map_err(|error| format!("its header cannot be read: {error}"))?;
    if json.get("rows").and_then(Json::as_str) == Some("tombstones") {
        return Err("it is a segment of deleted keys and has no values".into());
    }
    let Some(tree) = json.get("tree") else { return Ok(None) };
    // An export lists its columns: another program may have kept the header and changed the columns.
    let columns = json.get("columns").and_then(Json::as_array);
    if columns.is_some_and(|columns| !columns.iter().map(Json::as_str).eq(names.iter().map(|name| Some(*name)))) {
        return Ok(None);
    }
    let parsed = parse(tree, 0).ok_or_else(|| "the structure in its header cannot be parsed".to_owned())?;
    Ok(Some(parsed))
}

fn parse(json: &Json, depth: usize) -> Option<Tree> {
    if depth > MAX_DEPTH {
        return None;
    }
    if json.as_str() == Some("null") {
        return Some(Tree::Null);
    }
    let (kind, inner) = json.as_object().filter(|object| object.len() == 1)?.iter().next()?;
    let items = |items: &Json| items.as_array()?.iter().map(|item| parse(item, depth + 1)).collect::<Option<Vec<_>>>();
    Some(match kind.as_str() {
        "leaf" => Tree::Leaf(usize::try_from(inner.as_u64()?).ok()?),
        "list" => Tree::List(items(inner)?),
        "tuple" => Tree::Tuple(items(inner)?),
        "map" => {
            let pair = |pair: &Json| Some((pair.get(0)?.as_str()?.to_owned(), parse(pair.get(1)?, depth + 1)?));
            Tree::Map(inner.as_array()?.iter().map(pair).collect::<Option<Vec<_>>>()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn pointers_become_structures() {
        let of = |names: &[&str]| Tree::of(&Schema::empty(), names);
        assert_eq!(of(&["value"]), Ok(Tree::Leaf(0)));
        assert_eq!(of(&["embedding"]), Ok(Tree::Leaf(0)));
        let map = |items: &[(&str, Tree)]| {
            Tree::Map(items.iter().map(|(name, item)| ((*name).into(), item.clone())).collect())
        };
        assert_eq!(of(&["value/x"]), Ok(map(&[("x", Tree::Leaf(0))])));
        assert_eq!(of(&["value/a~1b", "value/~0"]), Ok(map(&[("a/b", Tree::Leaf(0)), ("~", Tree::Leaf(1))])));
        let list = Tree::List(vec![Tree::Leaf(0), Tree::Leaf(1)]);
        assert_eq!(of(&["value/l/0", "value/l/1", "value/n"]), Ok(map(&[("l", list), ("n", Tree::Leaf(2))])));
        assert_eq!(of(&["value", "label"]), Ok(map(&[("value", Tree::Leaf(0)), ("label", Tree::Leaf(1))])));
        assert!(of(&["value/a", "value/a/b"]).is_err());
    }

    #[test]
    fn headers_take_precedence_over_names() {
        let schema = |text: &str| {
            Schema::new_with_metadata(
                Vec::<arrow::datatypes::Field>::new(),
                HashMap::from([("tensorcask".into(), text.into())]),
            )
        };
        let tree = Tree::of(&schema(r#"{"tree":{"tuple":[{"leaf":0},"null"]}}"#), &["value/0"]);
        assert_eq!(tree, Ok(Tree::Tuple(vec![Tree::Leaf(0), Tree::Null])));
        assert!(Tree::of(&schema(r#"{"tree":{"leaf":0}}"#), &["a", "b"]).is_err());
        assert!(Tree::of(&schema(r#"{"rows":"tombstones","tree":"null"}"#), &[]).is_err());
        assert!(Tree::of(&schema("{"), &["a"]).is_err());
        let export = schema(r#"{"tree":{"tuple":[{"leaf":0},{"leaf":1}]},"columns":["value/0","value/1"]}"#);
        let leaves = || vec![Tree::Leaf(0), Tree::Leaf(1)];
        assert_eq!(Tree::of(&export, &["value/0", "value/1"]), Ok(Tree::Tuple(leaves())));
        let swapped = Tree::Map(vec![("1".into(), Tree::Leaf(0)), ("0".into(), Tree::Leaf(1))]);
        assert_eq!(Tree::of(&export, &["value/1", "value/0"]), Ok(swapped));
        assert_eq!(Tree::of(&export, &["value/0"]), Ok(Tree::List(vec![Tree::Leaf(0)])));
    }
}
