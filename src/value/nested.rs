//! Operations on whole trees of values of any depth, without recursion, which would overflow the stack.

use std::fmt;

use super::{MAX_DEPTH, Value, ValueView};

/// Levels that are printed.
const SHOWN_DEPTH: usize = 2 * MAX_DEPTH;

macro_rules! nested {
    ($type:ident $(<$life:lifetime>)?, $name:ty) => {
        impl$(<$life>)? $type$(<$life>)? {
            /// Whether it contains values.
            fn holds_any(&self) -> bool {
                match self {
                    Self::Map(items) => !items.is_empty(),
                    Self::List(items) | Self::Tuple(items) => !items.is_empty(),
                    _ => false,
                }
            }

            /// Whether any value in it contains values.
            fn is_deep(&self) -> bool {
                match self {
                    Self::Map(items) => items.iter().any(|(_, item)| item.holds_any()),
                    Self::List(items) | Self::Tuple(items) => items.iter().any(Self::holds_any),
                    _ => false,
                }
            }

            /// Moves the values in it to `out`.
            fn drain_into(&mut self, out: &mut Vec<Self>) {
                match self {
                    Self::Map(items) => out.extend(items.drain(..).map(|(_, item)| item)),
                    Self::List(items) | Self::Tuple(items) => out.append(items),
                    _ => {}
                }
            }

            /// The value itself without the values in it, with room for them.
            fn shell(&self) -> Self {
                match self {
                    Self::Map(items) => Self::Map(Vec::with_capacity(items.len())),
                    Self::List(items) => Self::List(Vec::with_capacity(items.len())),
                    Self::Tuple(items) => Self::Tuple(Vec::with_capacity(items.len())),
                    Self::Null => Self::Null,
                    Self::Bool(flag) => Self::Bool(*flag),
                    Self::Int(number) => Self::Int(*number),
                    Self::Float(number) => Self::Float(*number),
                    Self::Tensor(tensor) => Self::Tensor(tensor.clone()),
                    Self::Str(text) => Self::Str(text.clone()),
                    Self::Bytes(bytes) => Self::Bytes(bytes.clone()),
                }
            }

            /// The value in it at `position`, with its name.
            fn item(&self, position: usize) -> Option<(Option<&$name>, &Self)> {
                match self {
                    Self::Map(items) => items.get(position).map(|(name, item)| (Some(name), item)),
                    Self::List(items) | Self::Tuple(items) => items.get(position).map(|item| (None, item)),
                    _ => None,
                }
            }

            /// Adds a value.
            fn add(&mut self, name: Option<&$name>, item: Self) {
                match (self, name) {
                    (Self::Map(items), Some(name)) => items.push((name.clone(), item)),
                    (Self::List(items) | Self::Tuple(items), _) => items.push(item),
                    _ => {}
                }
            }

            /// Whether both are equal except for the values in them, and have as many of them.
            fn is_alike(&self, other: &Self) -> bool {
                match (self, other) {
                    (Self::Map(a), Self::Map(b)) => a.len() == b.len(),
                    (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => a.len() == b.len(),
                    (Self::Tensor(a), Self::Tensor(b)) => a == b,
                    (Self::Null, Self::Null) => true,
                    (Self::Bool(a), Self::Bool(b)) => a == b,
                    (Self::Int(a), Self::Int(b)) => a == b,
                    (Self::Float(a), Self::Float(b)) => a == b,
                    (Self::Str(a), Self::Str(b)) => a == b,
                    (Self::Bytes(a), Self::Bytes(b)) => a == b,
                    _ => false,
                }
            }

            fn show(&self, depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                /// A value at some depth.
                struct Shown<'s, T>(&'s T, usize);
                impl$(<$life>)? fmt::Debug for Shown<'_, $type$(<$life>)?> {
                    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        self.0.show(self.1, f)
                    }
                }
                if depth > SHOWN_DEPTH {
                    return f.write_str("…");
                }
                match self {
                    Self::Map(items) => {
                        let shown: Vec<_> = items.iter().map(|(name, item)| (name, Shown(item, depth + 1))).collect();
                        f.debug_tuple("Map").field(&shown).finish()
                    }
                    Self::List(items) | Self::Tuple(items) => {
                        let shown: Vec<_> = items.iter().map(|item| Shown(item, depth + 1)).collect();
                        f.debug_tuple(if matches!(self, Self::List(_)) { "List" } else { "Tuple" }).field(&shown).finish()
                    }
                    Self::Null => f.write_str("Null"),
                    Self::Bool(flag) => f.debug_tuple("Bool").field(flag).finish(),
                    Self::Int(number) => f.debug_tuple("Int").field(number).finish(),
                    Self::Float(number) => f.debug_tuple("Float").field(number).finish(),
                    Self::Tensor(tensor) => f.debug_tuple("Tensor").field(tensor).finish(),
                    Self::Str(text) => f.debug_tuple("Str").field(text).finish(),
                    Self::Bytes(bytes) => f.debug_tuple("Bytes").field(bytes).finish(),
                }
            }
        }

        impl$(<$life>)? Drop for $type$(<$life>)? {
            fn drop(&mut self) {
                // A flat value is dropped part by part, like any other type.
                if !self.is_deep() {
                    return;
                }
                let mut open = Vec::new();
                self.drain_into(&mut open);
                while let Some(mut value) = open.pop() {
                    value.drain_into(&mut open);
                }
            }
        }

        impl$(<$life>)? Clone for $type$(<$life>)? {
            fn clone(&self) -> Self {
                if !self.holds_any() {
                    return self.shell();
                }
                // Incomplete copies: each with its name, its original, and how many of its values were copied.
                let mut open = vec![(None, self, self.shell(), 0)];
                loop {
                    let Some((name, from, mut copy, done)) = open.pop() else { return Self::Null };
                    if let Some((inner_name, inner)) = from.item(done) {
                        if inner.holds_any() {
                            open.push((name, from, copy, done + 1));
                            open.push((inner_name, inner, inner.shell(), 0));
                        } else {
                            copy.add(inner_name, inner.shell());
                            open.push((name, from, copy, done + 1));
                        }
                        continue;
                    }
                    match open.last_mut() {
                        Some((_, _, parent, _)) => parent.add(name, copy),
                        None => return copy,
                    }
                }
            }
        }

        impl$(<$life>)? PartialEq for $type$(<$life>)? {
            fn eq(&self, other: &Self) -> bool {
                if !self.holds_any() {
                    return self.is_alike(other);
                }
                let mut open = vec![(self, other)];
                while let Some((a, b)) = open.pop() {
                    if !a.is_alike(b) {
                        return false;
                    }
                    let mut position = 0;
                    while let (Some((a_name, a)), Some((b_name, b))) = (a.item(position), b.item(position)) {
                        if a_name != b_name {
                            return false;
                        }
                        open.push((a, b));
                        position += 1;
                    }
                }
                true
            }
        }

        impl$(<$life>)? fmt::Debug for $type$(<$life>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.show(0, f)
            }
        }
    };
}
nested!(Value, String);
nested!(ValueView<'a>, &'a str);

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: usize = 100_000;

    fn deep(levels: usize, leaf: i64) -> Value {
        (0..levels).fold(Value::Int(leaf), |inner, level| match level % 3 {
            0 => Value::List(vec![inner, Value::Null]),
            1 => Value::Tuple(vec![Value::Bool(true), inner]),
            _ => Value::Map(vec![("a".into(), inner), ("b".into(), Value::Float(0.5))]),
        })
    }

    fn deep_view(levels: usize) -> ValueView<'static> {
        (0..levels).fold(ValueView::Str("leaf"), |inner, level| match level % 2 {
            0 => ValueView::List(vec![inner]),
            _ => ValueView::Map(vec![("a", inner), ("b", ValueView::Bytes(b"x"))]),
        })
    }

    #[test]
    fn depth_takes_no_stack() {
        let value = deep(LEVELS, 1);
        let clone = value.clone();
        assert!(value == clone && value != deep(LEVELS, 2) && value != deep(LEVELS - 3, 1));
        assert!(format!("{value:?}").contains('…') && format!("{value:#?}").contains('…'));
        let view = deep_view(LEVELS);
        assert!(view == view.clone() && view != deep_view(LEVELS - 2));
        assert!(format!("{view:?}").contains('…'));
        drop(value.view());
        assert!(value.into_map().is_none() && clone.into_items().is_some_and(|items| items.len() == 2));
    }

    #[test]
    fn flat_values_are_as_they_were() {
        for levels in 0..8 {
            let value = deep(levels, 7);
            assert_eq!(value, value.clone());
            assert_eq!(value.view(), value.clone().view());
            assert!(!format!("{value:?}").contains('…'));
        }
        let shown = format!("{:?}", Value::Map(vec![("n".into(), Value::List(vec![Value::Int(1), Value::Null]))]));
        assert_eq!(shown, r#"Map([("n", List([Int(1), Null]))])"#);
        assert_ne!(Value::List(vec![]), Value::Tuple(vec![]));
        assert_ne!(Value::Map(vec![("a".into(), Value::Null)]), Value::Map(vec![("b".into(), Value::Null)]));
        assert_ne!(Value::Float(f64::NAN), Value::Float(f64::NAN));
    }
}
