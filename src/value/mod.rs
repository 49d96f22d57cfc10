//! Values: what one key holds. A tensor, a scalar, or a tree of them.

mod nested;

use bytes::Bytes;

use crate::tensor::{Tensor, TensorView};

/// Deepest nesting of a value tree. JSON of a tree this deep stays within what strict parsers accept.
pub const MAX_DEPTH: usize = 32;

/// An owned value. Stored values are returned bit for bit.
///
/// A value may be nested as deep as memory allows: cloning, comparing, printing and dropping it do not recurse. A store
/// accepts up to [`MAX_DEPTH`] levels. Since it implements `Drop`, patterns cannot move its parts out; use
/// [`Value::into_tensor`], [`Value::into_map`] and [`Value::into_items`] for that.
#[derive(Default)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// No value (Python's `None`).
    #[default]
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// A byte string.
    Bytes(Bytes),
    /// Named values, in order.
    Map(Vec<(String, Value)>),
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
}

/// A borrowed value, which `put` takes, so that nothing is copied before it is encoded. Like [`Value`], it may be
/// nested to any depth.
#[derive(Default)]
pub enum ValueView<'a> {
    /// A tensor.
    Tensor(TensorView<'a>),
    /// No value.
    #[default]
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(&'a str),
    /// A byte string.
    Bytes(&'a [u8]),
    /// Named values, in order; each name occurs once.
    Map(Vec<(&'a str, ValueView<'a>)>),
    /// A list.
    List(Vec<ValueView<'a>>),
    /// A tuple.
    Tuple(Vec<ValueView<'a>>),
}

impl Value {
    /// A borrowed view. O(nodes of the tree), no tensor bytes are copied. A value nested deeper than a store accepts is
    /// cut after the first level that is too deep: no store accepts the view either.
    #[must_use]
    pub fn view(&self) -> ValueView<'_> {
        self.view_at(0)
    }

    fn view_at(&self, depth: usize) -> ValueView<'_> {
        if depth > MAX_DEPTH {
            return ValueView::Null;
        }
        match self {
            Self::Tensor(tensor) => ValueView::Tensor(tensor.view()),
            Self::Null => ValueView::Null,
            Self::Bool(flag) => ValueView::Bool(*flag),
            Self::Int(number) => ValueView::Int(*number),
            Self::Float(number) => ValueView::Float(*number),
            Self::Str(text) => ValueView::Str(text),
            Self::Bytes(bytes) => ValueView::Bytes(bytes),
            Self::Map(items) => {
                ValueView::Map(items.iter().map(|(name, item)| (name.as_str(), item.view_at(depth + 1))).collect())
            }
            Self::List(items) => ValueView::List(items.iter().map(|item| item.view_at(depth + 1)).collect()),
            Self::Tuple(items) => ValueView::Tuple(items.iter().map(|item| item.view_at(depth + 1)).collect()),
        }
    }

    /// The tensor, if the value is one.
    #[must_use]
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The tensor, if the value is one.
    #[must_use]
    pub fn into_tensor(self) -> Option<Tensor> {
        match &self {
            // The copy shares its bytes.
            Self::Tensor(tensor) => Some(tensor.clone()),
            _ => None,
        }
    }

    /// The named values, if the value is a map.
    #[must_use]
    pub fn into_map(mut self) -> Option<Vec<(String, Value)>> {
        match &mut self {
            Self::Map(items) => Some(std::mem::take(items)),
            _ => None,
        }
    }

    /// The items, if the value is a list or a tuple.
    #[must_use]
    pub fn into_items(mut self) -> Option<Vec<Value>> {
        match &mut self {
            Self::List(items) | Self::Tuple(items) => Some(std::mem::take(items)),
            _ => None,
        }
    }

    /// The integer, if the value is one.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The number, if the value is a float or an integer.
    #[must_use]
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            Self::Int(number) => Some(*number as f64),
            _ => None,
        }
    }

    /// The boolean, if the value is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The string, if the value is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if the value is a byte string.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The named values, if the value is a map.
    #[must_use]
    pub fn as_map(&self) -> Option<&[(String, Value)]> {
        match self {
            Self::Map(items) => Some(items),
            _ => None,
        }
    }

    /// The items, if the value is a list or a tuple.
    #[must_use]
    pub fn as_items(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Whether the value is [`Value::Null`].
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The value under `name`, if this is a map that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Map(items) => items.iter().find(|(found, _)| found == name).map(|(_, item)| item),
            _ => None,
        }
    }
}

impl ValueView<'_> {
    /// A view of it, cut as [`Value::view`] is.
    fn cut_at(&self, depth: usize) -> ValueView<'_> {
        if depth > MAX_DEPTH {
            return ValueView::Null;
        }
        fn all<'v>(items: &'v [ValueView<'_>], depth: usize) -> Vec<ValueView<'v>> {
            items.iter().map(|item| item.cut_at(depth)).collect()
        }
        match self {
            Self::Tensor(tensor) => ValueView::Tensor(tensor.reborrow()),
            Self::Map(items) => {
                ValueView::Map(items.iter().map(|(name, item)| (*name, item.cut_at(depth + 1))).collect())
            }
            Self::List(items) => ValueView::List(all(items, depth + 1)),
            Self::Tuple(items) => ValueView::Tuple(all(items, depth + 1)),
            scalar => scalar.clone(),
        }
    }
}

/// The result of indexing if there is no such value.
static NULL: Value = Value::Null;

/// The value under a name, or [`Value::Null`] if this is not a map or has no such name.
impl std::ops::Index<&str> for Value {
    type Output = Self;

    fn index(&self, name: &str) -> &Self {
        self.get(name).unwrap_or(&NULL)
    }
}

/// The item at a position, or [`Value::Null`] if this is not a list or tuple, or is shorter.
impl std::ops::Index<usize> for Value {
    type Output = Self;

    fn index(&self, position: usize) -> &Self {
        self.as_items().and_then(|items| items.get(position)).unwrap_or(&NULL)
    }
}

macro_rules! value_conversions {
    ($($type:ty => |$from:ident| $value:expr, |$to:ident| $back:expr);* $(;)?) => {
        $(
            impl From<$type> for Value { fn from($from: $type) -> Self { $value } }
            /// A value of another kind is returned as the error.
            impl TryFrom<Value> for $type {
                type Error = Value;

                fn try_from(value: Value) -> Result<Self, Value> {
                    let $to = &value;
                    match $back {
                        Some(inner) => Ok(inner),
                        None => Err(value),
                    }
                }
            }
        )*
    };
}
value_conversions! {
    Tensor => |tensor| Self::Tensor(tensor), |value| value.as_tensor().cloned();
    bool => |flag| Self::Bool(flag), |value| value.as_bool();
    i64 => |number| Self::Int(number), |value| value.as_int();
    f64 => |number| Self::Float(number), |value| value.as_float();
    String => |text| Self::Str(text), |value| value.as_str().map(str::to_owned);
    Vec<u8> => |bytes| Self::Bytes(bytes.into()), |value| value.as_bytes().map(<[u8]>::to_vec);
    Bytes => |bytes| Self::Bytes(bytes), |value| match value { Value::Bytes(bytes) => Some(bytes.clone()), _ => None };
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

/// A list.
impl<T: Into<Value>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

/// A map: `Value::from([("pooled", tensor), …])`.
impl<K: Into<String>, V: Into<Value>, const N: usize> From<[(K, V); N]> for Value {
    fn from(items: [(K, V); N]) -> Self {
        Self::Map(items.into_iter().map(|(name, item)| (name.into(), item.into())).collect())
    }
}

impl<'a> From<&'a Value> for ValueView<'a> {
    fn from(value: &'a Value) -> Self {
        value.view()
    }
}

impl<'a> From<TensorView<'a>> for ValueView<'a> {
    fn from(view: TensorView<'a>) -> Self {
        Self::Tensor(view)
    }
}

impl<'a> From<&'a Tensor> for ValueView<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor.view())
    }
}

/// A type that can be put as a value.
pub trait AsValue {
    /// The borrowed value.
    fn as_value(&self) -> ValueView<'_>;
}

impl<T: AsValue + ?Sized> AsValue for &T {
    fn as_value(&self) -> ValueView<'_> {
        (**self).as_value()
    }
}

macro_rules! as_value {
    ($($type:ty => |$value:ident| $view:expr),* $(,)?) => {
        $(impl AsValue for $type { fn as_value(&self) -> ValueView<'_> { let $value = self; $view } })*
    };
}
as_value! {
    bool => |flag| ValueView::Bool(*flag),
    i64 => |number| ValueView::Int(*number),
    f64 => |number| ValueView::Float(*number),
    str => |text| ValueView::Str(text),
    String => |text| ValueView::Str(text),
    [u8] => |bytes| ValueView::Bytes(bytes),
    Vec<u8> => |bytes| ValueView::Bytes(bytes),
    Bytes => |bytes| ValueView::Bytes(bytes),
}

impl AsValue for Value {
    fn as_value(&self) -> ValueView<'_> {
        self.view()
    }
}

impl AsValue for ValueView<'_> {
    fn as_value(&self) -> ValueView<'_> {
        self.cut_at(0)
    }
}

impl AsValue for Tensor {
    fn as_value(&self) -> ValueView<'_> {
        ValueView::Tensor(self.view())
    }
}

impl AsValue for TensorView<'_> {
    fn as_value(&self) -> ValueView<'_> {
        ValueView::Tensor(self.reborrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_convert_and_are_looked_into() {
        let tensor = Tensor::from_slice(&[2], &[1.0_f32, 2.0]).unwrap();
        let value = Value::from([
            ("pooled", Value::from(tensor.clone())),
            ("tokens", [1_i64, 2].into_iter().collect()),
            ("name", "cat".into()),
        ]);
        assert_eq!(value["pooled"].as_tensor(), Some(&tensor));
        assert_eq!(value["tokens"][1].as_int(), Some(2));
        assert_eq!((value["name"].as_str(), value["tokens"][0].as_float()), (Some("cat"), Some(1.0)));
        assert!(value["none"]["deeper"][3].is_null());
        assert_eq!(Tensor::try_from(value["pooled"].clone()), Ok(tensor));
        assert_eq!(i64::try_from(Value::from("text")), Err(Value::from("text")));
        assert_eq!(String::try_from(Value::from("text")), Ok("text".to_owned()));
        assert_eq!(Vec::try_from(Value::from(vec![1_u8, 2])), Ok(vec![1, 2]));
        assert_eq!(bool::try_from(Value::Bool(true)), Ok(true));
        assert_eq!(f64::try_from(Value::Int(3)), Ok(3.0));
    }
}
