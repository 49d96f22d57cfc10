//! What a wrapped module gives: a tensor, or a tree of tensors and plain values.

use tch::{Device, IValue, Kind, Tensor};

use crate::error::{Error, Result};
use crate::error::{invalid, torch};

/// The output of a module for a batch.
///
/// Every tensor's first dimension is the batch, also of those in lists. Plain values hold for the whole batch, so they
/// have to be the same for every sample. What is given sample by sample, as for shapes that differ, is an
/// [`Output::Each`], and nothing else is: sizes that happen to fit decide nothing. For modules that give such lists and
/// cannot say so, TorchScript among them, there is [`Lists::Each`].
#[derive(Debug)]
pub enum Output {
    /// One tensor, `[batch, …]`.
    Tensor(Tensor),
    /// One output a sample, in order: for samples whose shapes differ. Tensors in it have no batch dimension.
    Each(Vec<Output>),
    /// Named outputs, in order.
    Map(Vec<(String, Output)>),
    /// A list.
    List(Vec<Output>),
    /// A tuple.
    Tuple(Vec<Output>),
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
}

/// What the lists are that a module gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lists {
    /// Outputs of the whole batch, such as one `[batch, …]` tensor a layer.
    #[default]
    Batched,
    /// One item a sample, as [`Output::Each`].
    Each,
}

impl Output {
    /// A list of outputs of the whole batch.
    #[must_use]
    pub fn list<O: Into<Output>>(items: impl IntoIterator<Item = O>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }

    /// The same tree, in which the outermost lists are what `lists` says.
    pub(crate) fn with_lists(self, lists: Lists) -> Self {
        match self {
            Self::List(items) if lists == Lists::Each => Self::Each(items),
            Self::Map(items) => {
                Self::Map(items.into_iter().map(|(name, item)| (name, item.with_lists(lists))).collect())
            }
            Self::Tuple(items) => Self::Tuple(items.into_iter().map(|item| item.with_lists(lists)).collect()),
            other => other,
        }
    }

    /// A map of named outputs.
    #[must_use]
    pub fn map<N: Into<String>, O: Into<Output>>(items: impl IntoIterator<Item = (N, O)>) -> Self {
        Self::Map(items.into_iter().map(|(name, item)| (name.into(), item.into())).collect())
    }

    /// One tensor a sample, of shapes that may differ.
    #[must_use]
    pub fn each(rows: impl IntoIterator<Item = Tensor>) -> Self {
        Self::Each(rows.into_iter().map(Self::Tensor).collect())
    }

    /// The tensor, if the output is one.
    #[must_use]
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The tensor, if the output is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is something else.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(invalid(format!("the output is a {}, not a tensor: match on Output", other.name()))),
        }
    }

    /// The output under `name`, if this is a map that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Output> {
        match self {
            Self::Map(items) => items.iter().find(|(found, _)| found == name).map(|(_, item)| item),
            _ => None,
        }
    }

    /// The items of a list, tuple or `Each`; nothing for anything else.
    #[must_use]
    pub fn items(&self) -> &[Output] {
        match self {
            Self::Each(items) | Self::List(items) | Self::Tuple(items) => items,
            _ => &[],
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "tensor",
            Self::Each(_) => "row of each sample",
            Self::Map(_) => "map",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "string",
        }
    }

    /// The same tree with every tensor passed through `f`.
    pub(crate) fn try_map(&self, f: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut all = |items: &[Output]| items.iter().map(|item| item.try_map(f)).collect::<Result<Vec<_>>>();
        Ok(match self {
            Self::Tensor(tensor) => Self::Tensor(f(tensor)?),
            Self::Each(items) => Self::Each(all(items)?),
            Self::List(items) => Self::List(all(items)?),
            Self::Tuple(items) => Self::Tuple(all(items)?),
            Self::Map(items) => Self::Map(
                items.iter().map(|(name, item)| Ok((name.clone(), item.try_map(f)?))).collect::<Result<Vec<_>>>()?,
            ),
            Self::Null => Self::Null,
            Self::Bool(flag) => Self::Bool(*flag),
            Self::Int(number) => Self::Int(*number),
            Self::Float(number) => Self::Float(*number),
            Self::Str(text) => Self::Str(text.clone()),
        })
    }

    /// The same tree; tensors share their storage.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        // Cloning a handle cannot fail.
        self.try_map(&mut |tensor| Ok(tensor.shallow_clone())).unwrap_or(Self::Null)
    }

    /// The same tree on `device`; tensors that are there already share their storage.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch cannot copy.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        self.try_map(&mut |tensor| tensor.f_to_device(device).map_err(torch("copy an output to a device")))
    }
}

/// The rows of `tensor` at `positions`.
pub(crate) fn select_rows(tensor: &Tensor, positions: &[usize]) -> Result<Tensor> {
    let index: Vec<i64> = positions.iter().map(|&at| i64::try_from(at).unwrap_or(i64::MAX)).collect();
    let index = Tensor::f_from_slice(&index).and_then(|index| index.f_to_device(tensor.device()));
    let select = |tensor: &Tensor| index.and_then(|index| tensor.f_index_select(0, &index));
    let selected = if tensor.is_mkldnn() {
        tensor.f_to_dense(None::<Kind>, false).and_then(|dense| select(&dense)?.f_to_mkldnn(None))
    } else {
        select(tensor)
    };
    selected.map_err(torch("select rows of a batch"))
}

/// What a wrapped function may return: an [`Output`], a tensor, a list or tuple of them, or a `Result` of those.
pub trait IntoOutput {
    /// The output, or the function's own error as [`Error::Compute`].
    ///
    /// # Errors
    /// The function's.
    fn into_output(self) -> Result<Output>;
}

macro_rules! into_output {
    ($($type:ty),*) => {
        $(impl IntoOutput for $type { fn into_output(self) -> Result<Output> { Ok(self.into()) } })*
    };
}
into_output! { Output, Tensor, Vec<Tensor>, (Tensor, Tensor), (Tensor, Tensor, Tensor) }

impl<O: IntoOutput, E: Into<Box<dyn std::error::Error + Send + Sync>>> IntoOutput for Result<O, E> {
    fn into_output(self) -> Result<Output> {
        match self {
            Ok(output) => output.into_output(),
            Err(error) => Err(match error.into().downcast::<Error>() {
                Ok(ours) => *ours,
                Err(theirs) => Error::compute(theirs),
            }),
        }
    }
}

impl From<Tensor> for Output {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl From<Vec<Tensor>> for Output {
    fn from(tensors: Vec<Tensor>) -> Self {
        Self::List(tensors.into_iter().map(Self::Tensor).collect())
    }
}

impl From<(Tensor, Tensor)> for Output {
    fn from((a, b): (Tensor, Tensor)) -> Self {
        Self::Tuple(vec![a.into(), b.into()])
    }
}

impl From<(Tensor, Tensor, Tensor)> for Output {
    fn from((a, b, c): (Tensor, Tensor, Tensor)) -> Self {
        Self::Tuple(vec![a.into(), b.into(), c.into()])
    }
}

macro_rules! plain {
    ($($type:ty => $variant:ident),*) => {
        $(impl From<$type> for Output { fn from(value: $type) -> Self { Self::$variant(value.into()) } })*
    };
}
plain! { bool => Bool, i64 => Int, f64 => Float, &str => Str, String => Str }

impl TryFrom<IValue> for Output {
    type Error = Error;

    /// What TorchScript modules return.
    fn try_from(value: IValue) -> Result<Self> {
        fn all<T: Into<Output>>(items: Vec<T>) -> Output {
            Output::List(items.into_iter().map(Into::into).collect())
        }
        let nested = |items: Vec<IValue>| items.into_iter().map(Output::try_from).collect::<Result<Vec<_>>>();
        Ok(match value {
            IValue::None => Self::Null,
            IValue::Tensor(tensor) => Self::Tensor(tensor),
            IValue::Double(number) => Self::Float(number),
            IValue::Int(number) => Self::Int(number),
            IValue::Bool(flag) => Self::Bool(flag),
            IValue::String(text) => Self::Str(text),
            IValue::Tuple(items) => Self::Tuple(nested(items)?),
            IValue::GenericList(items) => Self::List(nested(items)?),
            IValue::TensorList(items) => all(items),
            IValue::IntList(items) => all(items),
            IValue::DoubleList(items) => all(items),
            IValue::BoolList(items) => all(items),
            IValue::StringList(items) => all(items),
            IValue::GenericDict(items) => {
                let pair = |(name, item): (IValue, IValue)| match name {
                    IValue::String(name) => Ok((name, Output::try_from(item)?)),
                    other => Err(invalid(format!("a map's key is {other:?}: only strings can be stored"))),
                };
                Self::Map(items.into_iter().map(pair).collect::<Result<_>>()?)
            }
            other => return Err(invalid(format!("a TorchScript output {other:?} cannot be stored"))),
        })
    }
}
