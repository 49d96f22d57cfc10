//! The output of a wrapped module: a tensor, or a tree of tensors and plain values.

use crate::error::{Error, Result, invalid};
use crate::framework::Framework;

/// The output of a module for a batch.
///
/// The first dimension of every tensor is the batch, also of tensors in lists. Plain values hold for the whole batch,
/// so they have to be the same for every sample. Only an [`Output::Each`] holds one output per sample, such as tensors
/// whose shapes differ; a list is never taken for one because its length fits. For modules that return such lists and
/// cannot construct an `Each`, such as TorchScript modules, use [`Lists::Each`].
#[derive(Debug)]
pub enum Output<F: Framework> {
    /// One tensor, `[batch, …]`.
    Tensor(F::Tensor),
    /// One output per sample, in order, for samples whose shapes differ. Its tensors have no batch dimension.
    Each(Vec<Output<F>>),
    /// Named outputs, in order.
    Map(Vec<(String, Output<F>)>),
    /// A list.
    List(Vec<Output<F>>),
    /// A tuple.
    Tuple(Vec<Output<F>>),
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

/// The meaning of lists in a module's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lists {
    /// Outputs of the whole batch, such as one `[batch, …]` tensor per layer.
    #[default]
    Batched,
    /// One item per sample, as in [`Output::Each`].
    Each,
}

/// A function of each tensor of a tree.
type TryEach<'a, F, E> = dyn FnMut(&<F as Framework>::Tensor) -> Result<<F as Framework>::Tensor, E> + 'a;

impl<F: Framework> Output<F> {
    /// A list of outputs of the whole batch.
    #[must_use]
    pub fn list<O: OutputLike<F>>(items: impl IntoIterator<Item = O>) -> Self {
        Self::List(items.into_iter().map(OutputLike::output).collect())
    }

    /// One output: a tensor, a plain value, or a list or tuple of them.
    pub fn of(output: impl OutputLike<F>) -> Self {
        output.output()
    }

    /// The same tree, whose outermost lists are interpreted as `lists` says.
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
    pub fn map<N: Into<String>, O: OutputLike<F>>(items: impl IntoIterator<Item = (N, O)>) -> Self {
        Self::Map(items.into_iter().map(|(name, item)| (name.into(), item.output())).collect())
    }

    /// One tensor per sample, of shapes that may differ.
    #[must_use]
    pub fn each(rows: impl IntoIterator<Item = F::Tensor>) -> Self {
        Self::Each(rows.into_iter().map(Self::Tensor).collect())
    }

    /// The tensor, if the output is one.
    #[must_use]
    pub fn tensor(&self) -> Option<&F::Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The tensor, if the output is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is anything else.
    pub fn into_tensor(self) -> Result<F::Tensor> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(invalid(format!("the output is a {}, not a tensor: match on Output", other.name()))),
        }
    }

    /// The output under `name`, if this is a map with that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Output<F>> {
        match self {
            Self::Map(items) => items.iter().find(|(found, _)| found == name).map(|(_, item)| item),
            _ => None,
        }
    }

    /// The items of a list, tuple or `Each`; empty for anything else.
    #[must_use]
    pub fn items(&self) -> &[Output<F>] {
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

    /// The same tree with `f` applied to every tensor.
    pub(crate) fn try_map<E>(&self, f: &mut TryEach<'_, F, E>) -> Result<Self, E> {
        let mut all = |items: &[Output<F>]| items.iter().map(|item| item.try_map(f)).collect::<Result<Vec<_>, E>>();
        Ok(match self {
            Self::Tensor(tensor) => Self::Tensor(f(tensor)?),
            Self::Each(items) => Self::Each(all(items)?),
            Self::List(items) => Self::List(all(items)?),
            Self::Tuple(items) => Self::Tuple(all(items)?),
            Self::Map(items) => Self::Map(
                items.iter().map(|(name, item)| Ok((name.clone(), item.try_map(f)?))).collect::<Result<Vec<_>, E>>()?,
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
        let Ok(cloned) = self.try_map(&mut |tensor| Ok::<_, std::convert::Infallible>(F::share(tensor)));
        cloned
    }

    /// The same tree on `device`; tensors on that device share their storage.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn to_device(&self, device: F::Device) -> Result<Self> {
        self.try_map(&mut |tensor| F::to_device(tensor, device.clone()))
    }
}

/// A type that is an output: an [`Output`], a tensor, a plain value, or a list or tuple of them.
pub trait OutputLike<F: Framework> {
    /// The output.
    fn output(self) -> Output<F>;
}

impl<F: Framework> OutputLike<F> for Output<F> {
    fn output(self) -> Output<F> {
        self
    }
}

/// A type that a wrapped function may return: an [`Output`], a tensor, a list or tuple of them, or a `Result` of those.
pub trait IntoOutput<F: Framework> {
    /// The output, or the function's error as [`Error::Compute`].
    ///
    /// # Errors
    /// Errors of the function.
    fn into_output(self) -> Result<Output<F>>;
}

impl<F: Framework> IntoOutput<F> for Output<F> {
    fn into_output(self) -> Result<Output<F>> {
        Ok(self)
    }
}

impl<F: Framework, O: IntoOutput<F>, E: Into<Box<dyn std::error::Error + Send + Sync>>> IntoOutput<F> for Result<O, E> {
    fn into_output(self) -> Result<Output<F>> {
        match self {
            Ok(output) => output.into_output(),
            Err(error) => Err(match error.into().downcast::<Error>() {
                Ok(ours) => *ours,
                Err(theirs) => Error::compute(theirs),
            }),
        }
    }
}

macro_rules! plain {
    ($($type:ty => $variant:ident),*) => {
        $(
            impl<F: Framework> From<$type> for Output<F> { fn from(value: $type) -> Self { Self::$variant(value.into()) } }
            impl<F: Framework> OutputLike<F> for $type { fn output(self) -> Output<F> { self.into() } }
            impl<F: Framework> IntoOutput<F> for $type { fn into_output(self) -> Result<Output<F>> { Ok(self.into()) } }
        )*
    };
}
plain! { bool => Bool, i64 => Int, f64 => Float, &str => Str, String => Str }
