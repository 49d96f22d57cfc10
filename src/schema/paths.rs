//! The paths of leaves, which are also the names of their columns.

use super::tree::Node;
use crate::value::Value;

/// The path of a value that is a leaf itself, and the start of all other paths.
pub(crate) const ROOT: &str = "value";

/// The paths of all leaves: `value`, or `value` and a JSON pointer ([RFC 6901](https://www.rfc-editor.org/rfc/rfc6901))
/// to the leaf, so that no two leaves share one.
pub(crate) fn leaf_paths(tree: &Node) -> Vec<String> {
    fn walk(node: &Node, path: &str, paths: &mut Vec<String>) {
        match node {
            Node::Null => {}
            Node::Leaf(_) => paths.push(path.to_owned()),
            Node::Map(items) => items.iter().for_each(|(name, item)| {
                walk(item, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), paths);
            }),
            Node::List(items) | Node::Tuple(items) => {
                items.iter().enumerate().for_each(|(position, item)| walk(item, &format!("{path}/{position}"), paths));
            }
        }
    }
    let mut paths = Vec::new();
    walk(tree, ROOT, &mut paths);
    paths
}

/// The steps of a path after its root; `None` if it does not start with the root.
fn steps(path: &str) -> Option<impl Iterator<Item = String>> {
    let rest = path.strip_prefix(ROOT)?;
    let rest = if rest.is_empty() { None } else { Some(rest.strip_prefix('/')?) };
    let steps = rest.map(|rest| rest.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")));
    Some(steps.into_iter().flatten())
}

/// The position of an item in a list, which has one spelling only.
fn position(step: &str) -> Option<usize> {
    step.parse().ok().filter(|position: &usize| position.to_string() == step)
}

/// The number of the leaf at `path`. O(depth and entries of the maps on the way).
pub(crate) fn leaf_at(tree: &Node, path: &str) -> Option<usize> {
    let found = steps(path)?.try_fold(tree, |node, step| match node {
        Node::Map(items) => items.iter().find(|(name, _)| *name == step).map(|(_, item)| item),
        Node::List(items) | Node::Tuple(items) => items.get(position(&step)?),
        Node::Leaf(_) | Node::Null => None,
    })?;
    if let Node::Leaf(number) = found { Some(*number) } else { None }
}

/// The part of `value` at `path`.
pub(crate) fn value_at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    steps(path)?.try_fold(value, |value, step| match value {
        Value::Map(_) => value.get(&step),
        Value::List(items) | Value::Tuple(items) => items.get(position(&step)?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_to_its_own_leaf() {
        let leaf = |number| Node::Leaf(number);
        let names = ["a", "", "a/b", "~1", "~", "0"];
        let map = names.iter().enumerate().map(|(number, name)| ((*name).to_owned(), leaf(number))).collect();
        let list = Node::List((6..18).map(leaf).chain([Node::Null]).collect());
        let tree = Node::Tuple(vec![Node::Map(map), list, leaf(18)]);
        let paths = leaf_paths(&tree);
        assert_eq!(paths.get(2).map(String::as_str), Some("value/0/a~1b"));
        for (number, path) in paths.iter().enumerate() {
            assert_eq!(leaf_at(&tree, path), Some(number), "{path}");
        }
        for absent in
            ["", "value", "value/", "value/1", "value/1/12", "value/1/01", "value/1/+1", "value/2/0", "valu", "value0"]
        {
            assert_eq!(leaf_at(&tree, absent), None, "{absent:?}");
        }
        assert_eq!((leaf_paths(&leaf(0)), leaf_at(&leaf(0), "value")), (vec!["value".to_owned()], Some(0)));
    }

    #[test]
    fn values_are_reached_by_the_same_paths() {
        let value = Value::from([("a/b", Value::from_iter([1_i64, 2])), ("c", Value::Null)]);
        assert_eq!(value_at(&value, "value/a~1b/1"), Some(&Value::Int(2)));
        assert_eq!(value_at(&value, "value/a~1b/2"), None);
        assert_eq!(value_at(&value, "value"), Some(&value));
    }
}
