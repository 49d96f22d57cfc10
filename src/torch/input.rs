//! What a wrapped module is called with: tensors with one batch dimension, and plain arguments.

use tch::{Device, IValue, Tensor};

use super::error::invalid;
use super::output::select_rows;
use crate::error::{Error, Result};

/// One argument.
#[derive(Debug)]
#[non_exhaustive]
pub enum Argument {
    /// A tensor whose first dimension is the batch.
    Tensor(Tensor),
    /// A tensor that is the same for every sample: passed on as it is, and part of every key.
    Shared(Tensor),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// A boolean.
    Bool(bool),
    /// No value (Python's `None`).
    Null,
}

impl Argument {
    fn shallow_clone(&self) -> Self {
        match self {
            Self::Tensor(tensor) => Self::Tensor(tensor.shallow_clone()),
            Self::Shared(tensor) => Self::Shared(tensor.shallow_clone()),
            Self::Int(number) => Self::Int(*number),
            Self::Float(number) => Self::Float(*number),
            Self::Str(text) => Self::Str(text.clone()),
            Self::Bool(flag) => Self::Bool(*flag),
            Self::Null => Self::Null,
        }
    }
}

impl From<&Argument> for IValue {
    fn from(argument: &Argument) -> Self {
        match argument {
            Argument::Tensor(tensor) | Argument::Shared(tensor) => Self::Tensor(tensor.shallow_clone()),
            Argument::Int(number) => Self::Int(*number),
            Argument::Float(number) => Self::Double(*number),
            Argument::Str(text) => Self::String(text.clone()),
            Argument::Bool(flag) => Self::Bool(*flag),
            Argument::Null => Self::None,
        }
    }
}

macro_rules! argument_from {
    ($($type:ty => |$value:ident| $argument:expr),* $(,)?) => {
        $(impl From<$type> for Argument { fn from($value: $type) -> Self { $argument } })*
    };
}
argument_from! {
    &Tensor => |tensor| Self::Tensor(tensor.shallow_clone()),
    Tensor => |tensor| Self::Tensor(tensor),
    i64 => |number| Self::Int(number),
    f64 => |number| Self::Float(number),
    &str => |text| Self::Str(text.to_owned()),
    String => |text| Self::Str(text),
    bool => |flag| Self::Bool(flag),
    () => |_unit| Self::Null,
}

/// The arguments of one call, by position or by name.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use tensorcask::torch::Inputs;
///
/// let tokens = Tensor::zeros([8, 64], (Kind::Int64, Device::Cpu));
/// let mask = Tensor::ones([8, 64], (Kind::Int64, Device::Cpu));
/// let inputs = Inputs::new().with(&tokens).with(&mask).named("layer", 3);
/// assert_eq!(inputs.batch_size().unwrap(), 8);
/// ```
#[derive(Debug, Default)]
pub struct Inputs {
    arguments: Vec<(Option<String>, Argument)>,
}

impl Inputs {
    /// No arguments yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more argument by position.
    #[must_use]
    pub fn with(mut self, argument: impl Into<Argument>) -> Self {
        self.arguments.push((None, argument.into()));
        self
    }

    /// One more argument by name. The order of names does not matter for keys.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>, argument: impl Into<Argument>) -> Self {
        self.arguments.push((Some(name.into()), argument.into()));
        self
    }

    /// The arguments by position, in order.
    pub fn positional(&self) -> impl Iterator<Item = &Argument> {
        self.arguments.iter().filter(|(name, _)| name.is_none()).map(|(_, argument)| argument)
    }

    /// The argument of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Argument> {
        self.arguments.iter().find(|(found, _)| found.as_deref() == Some(name)).map(|(_, argument)| argument)
    }

    /// The tensor at `position` among the arguments by position.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none.
    pub fn tensor(&self, position: usize) -> Result<&Tensor> {
        match self.positional().nth(position) {
            Some(Argument::Tensor(tensor) | Argument::Shared(tensor)) => Ok(tensor),
            found => Err(invalid(format!("argument {position} is {found:?}: a tensor was expected"))),
        }
    }

    /// The tensor under `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none.
    pub fn tensor_named(&self, name: &str) -> Result<&Tensor> {
        match self.get(name) {
            Some(Argument::Tensor(tensor) | Argument::Shared(tensor)) => Ok(tensor),
            found => Err(invalid(format!("argument {name:?} is {found:?}: a tensor was expected"))),
        }
    }

    /// All arguments, those by position first and in order, then those with names, sorted by name.
    pub(super) fn sorted(&self) -> Vec<(Option<&str>, &Argument)> {
        let mut all: Vec<_> = self.arguments.iter().map(|(name, argument)| (name.as_deref(), argument)).collect();
        all.sort_by_key(|(name, _)| *name);
        all
    }

    /// The tensors with a batch dimension.
    pub(super) fn batched(&self) -> impl Iterator<Item = &Tensor> {
        self.arguments.iter().filter_map(|(_, argument)| match argument {
            Argument::Tensor(tensor) => Some(tensor),
            _ => None,
        })
    }

    /// Samples in the batch.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no batched tensor, one has no dimensions, their first dimensions differ, or a
    /// name stands twice.
    pub fn batch_size(&self) -> Result<usize> {
        let mut names: Vec<&str> = self.arguments.iter().filter_map(|(name, _)| name.as_deref()).collect();
        names.sort_unstable();
        if let Some(twice) = names.array_windows().find(|[a, b]| a == b) {
            return Err(invalid(format!("the argument {:?} was passed twice", twice[0])));
        }
        let mut sizes = self.batched().map(|tensor| tensor.size().first().copied());
        let first = sizes.next().ok_or_else(|| invalid("no tensor was passed: a batch needs one at least"))?;
        if let Some(other) = sizes.find(|size| *size != first) {
            return Err(invalid(format!(
                "the tensors' first dimensions differ ({} and {}): all tensors of a call share one batch; pass what \
                 is the same for all samples as Argument::Shared",
                show(first),
                show(other)
            )));
        }
        let first = first.ok_or_else(|| invalid("a tensor has no dimensions: its first is the batch"))?;
        usize::try_from(first).map_err(|_| invalid("a batch size is negative"))
    }

    /// The device that results are wanted on: that of the first batched tensor.
    pub(super) fn device(&self) -> Device {
        self.batched().next().map_or(Device::Cpu, Tensor::device)
    }

    /// The same call for the samples at `positions` only.
    pub(super) fn select(&self, positions: &[usize]) -> Result<Self> {
        let pick = |argument: &Argument| match argument {
            Argument::Tensor(tensor) => select_rows(tensor, positions).map(Argument::Tensor),
            other => Ok(other.shallow_clone()),
        };
        let arguments = self.arguments.iter().map(|(name, argument)| Ok((name.clone(), pick(argument)?)));
        Ok(Self { arguments: arguments.collect::<Result<_>>()? })
    }

    /// The same arguments; tensors share their storage.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let arguments = self.arguments.iter().map(|(name, argument)| (name.clone(), argument.shallow_clone()));
        Self { arguments: arguments.collect() }
    }
}

fn show(size: Option<i64>) -> String {
    size.map_or("none".to_owned(), |size| size.to_string())
}

impl From<&Tensor> for Inputs {
    fn from(tensor: &Tensor) -> Self {
        Self::new().with(tensor)
    }
}

impl<const N: usize> From<[&Tensor; N]> for Inputs {
    fn from(tensors: [&Tensor; N]) -> Self {
        tensors.into_iter().fold(Self::new(), Self::with)
    }
}

impl From<&[&Tensor]> for Inputs {
    fn from(tensors: &[&Tensor]) -> Self {
        tensors.iter().copied().fold(Self::new(), Self::with)
    }
}

impl From<&Inputs> for Inputs {
    fn from(inputs: &Inputs) -> Self {
        inputs.shallow_clone()
    }
}

impl TryFrom<IValue> for Argument {
    type Error = Error;

    fn try_from(value: IValue) -> Result<Self> {
        Ok(match value {
            IValue::Tensor(tensor) => Self::Tensor(tensor),
            IValue::Int(number) => Self::Int(number),
            IValue::Double(number) => Self::Float(number),
            IValue::String(text) => Self::Str(text),
            IValue::Bool(flag) => Self::Bool(flag),
            IValue::None => Self::Null,
            other => {
                return Err(invalid(format!(
                    "an argument {other:?} is of no supported type: pass tensors, integers, floats, strings, booleans \
                     or None"
                )));
            }
        })
    }
}
