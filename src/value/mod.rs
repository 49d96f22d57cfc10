//! Values: what one key holds. A tensor, a scalar, or a tree of them.

mod nested;

use bytes::Bytes;

use crate::schema::MAX_DEPTH;
use crate::tensor::{Tensor, TensorView};

/// An owned value. What goes in comes out, bit for bit.
///
/// A value may be nested as deep as memory allows, and is cloned, compared, printed and dropped without a stack that
/// grows with it; a store takes up to [`MAX_DEPTH`] levels. Since it is dropped in a way of its own, its parts
/// are not moved out by a pattern: [`Value::into_tensor`], [`Value::into_map`] and [`Value::into_items`] do that.
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

/// A borrowed value: what `put` takes, so that nothing has to be copied before it is encoded. As [`Value`], it may be
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
    /// Named values, in order; a name may stand once.
    Map(Vec<(&'a str, ValueView<'a>)>),
    /// A list.
    List(Vec<ValueView<'a>>),
    /// A tuple.
    Tuple(Vec<ValueView<'a>>),
}

impl Value {
    /// A borrowed view. O(nodes of the tree), no tensor bytes are copied. What is nested deeper than a store takes is
    /// left out below the first level that is too deep: no store takes the view either.
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
            // Its bytes are shared.
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

    /// The value under `name`, if this is a map that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Map(items) => items.iter().find(|(found, _)| found == name).map(|(_, item)| item),
            _ => None,
        }
    }
}

impl<'a> ValueView<'a> {
    /// A copy, cut as [`Value::view`] is.
    fn cut_at(&self, depth: usize) -> ValueView<'a> {
        if depth > MAX_DEPTH {
            return ValueView::Null;
        }
        let all = |items: &[Self]| items.iter().map(|item| item.cut_at(depth + 1)).collect();
        match self {
            Self::Map(items) => {
                ValueView::Map(items.iter().map(|(name, item)| (*name, item.cut_at(depth + 1))).collect())
            }
            Self::List(items) => ValueView::List(all(items)),
            Self::Tuple(items) => ValueView::Tuple(all(items)),
            scalar => scalar.clone(),
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
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

/// What can be put as a value.
pub trait AsValue {
    /// The borrowed value.
    fn as_value(&self) -> ValueView<'_>;
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
        ValueView::Tensor(*self)
    }
}
