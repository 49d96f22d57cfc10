//! Values: what one key holds. A tensor, a scalar, or a tree of them.

use bytes::Bytes;

use crate::tensor::{Tensor, TensorView};

/// An owned value. What goes in comes out, bit for bit.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// No value (Python's `None`).
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

/// A borrowed value: what `put` takes, so that nothing has to be copied before it is encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum ValueView<'a> {
    /// A tensor.
    Tensor(TensorView<'a>),
    /// No value.
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
    /// A borrowed view. O(nodes of the tree), no tensor bytes are copied.
    #[must_use]
    pub fn view(&self) -> ValueView<'_> {
        match self {
            Self::Tensor(tensor) => ValueView::Tensor(tensor.view()),
            Self::Null => ValueView::Null,
            Self::Bool(flag) => ValueView::Bool(*flag),
            Self::Int(number) => ValueView::Int(*number),
            Self::Float(number) => ValueView::Float(*number),
            Self::Str(text) => ValueView::Str(text),
            Self::Bytes(bytes) => ValueView::Bytes(bytes),
            Self::Map(items) => ValueView::Map(items.iter().map(|(name, item)| (name.as_str(), item.view())).collect()),
            Self::List(items) => ValueView::List(items.iter().map(Value::view).collect()),
            Self::Tuple(items) => ValueView::Tuple(items.iter().map(Value::view).collect()),
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
        match self {
            Self::Tensor(tensor) => Some(tensor),
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
        self.clone()
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
