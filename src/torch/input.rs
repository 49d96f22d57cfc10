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
    /// The place of an [`Argument::Tensor`], in a lookup by ids that has none at hand: see [`Inputs::tensors`].
    Batched,
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
            Self::Batched => Self::Batched,
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
            Argument::Null | Argument::Batched => Self::None,
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

    /// The places of `count` tensors by position, for lookups by ids and for loaders: what a call takes, without the
    /// tensors themselves. Further places are [`Argument::Batched`].
    #[must_use]
    pub fn tensors(count: usize) -> Self {
        (0..count).fold(Self::new(), |inputs, _| inputs.with(Argument::Batched))
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

    /// Whether tensors are at hand, not just their places.
    pub(super) fn has_tensors(&self) -> bool {
        self.batched().next().is_some()
    }

    /// This call, whose tensors are those of `loaded`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if other tensors were loaded than this call has places for, or anything else.
    pub(super) fn filled(&self, mut loaded: Self) -> Result<Self> {
        if loaded.arguments.iter().any(|(_, argument)| !matches!(argument, Argument::Tensor(_))) {
            return Err(invalid(
                "plain or shared arguments were loaded: they are part of the key, and the keys were looked up before; \
                 say them beforehand, as the arguments of the call or of the batches, and load tensors only",
            ));
        }
        let places = |inputs: &Self| {
            let tensor = |argument: &Argument| matches!(argument, Argument::Tensor(_) | Argument::Batched);
            let mut names: Vec<Option<String>> =
                inputs.arguments.iter().filter(|(_, a)| tensor(a)).map(|(name, _)| name.clone()).collect();
            names.sort();
            names
        };
        let (wanted, found) = (places(self), places(&loaded));
        if wanted != found {
            let list = |names: &[Option<String>]| {
                let name = |name: &Option<String>| name.as_ref().map_or("by position".to_owned(), |n| format!("{n:?}"));
                names.iter().map(name).collect::<Vec<_>>().join(", ")
            };
            return Err(invalid(format!(
                "the tensors ({}) were loaded, but the ids were looked up for a call with ({}): say beforehand what a \
                 call takes, such as Inputs::tensors(2), as the arguments of the call or of the batches",
                list(&found),
                list(&wanted)
            )));
        }
        let mut take = |name: &Option<String>| {
            let at = loaded.arguments.iter().position(|(found, _)| found == name)?;
            Some(loaded.arguments.remove(at).1)
        };
        let fill = |(name, argument): &(Option<String>, Argument)| {
            let argument = match argument {
                Argument::Tensor(_) | Argument::Batched => take(name).unwrap_or(Argument::Null),
                other => other.shallow_clone(),
            };
            (name.clone(), argument)
        };
        Ok(Self { arguments: self.arguments.iter().map(fill).collect() })
    }

    /// Refuses tensors that are no block of elements, by name.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub(super) fn check_dense(&self) -> Result<()> {
        let mut position = 0_usize;
        for (name, argument) in &self.arguments {
            let at = match name {
                Some(name) => format!("{name:?}"),
                None => position.to_string(),
            };
            position += usize::from(name.is_none());
            match argument {
                Argument::Tensor(tensor) | Argument::Shared(tensor) if is_sparse(tensor) => {
                    return Err(invalid(format!(
                        "the argument {at} is a sparse tensor, whose rows are no blocks of elements: pass \
                         tensor.to_dense()"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Samples in the batch.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is no batched tensor, one has no dimensions, their first dimensions differ, or a
    /// name stands twice.
    pub fn batch_size(&self) -> Result<usize> {
        let mut names: Vec<&str> = self.arguments.iter().filter_map(|(name, _)| name.as_deref()).collect();
        names.sort_unstable();
        if let Some(twice) = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
            return Err(invalid(format!("the argument {:?} was passed twice", twice.0)));
        }
        if self.arguments.iter().any(|(_, argument)| matches!(argument, Argument::Batched)) {
            return Err(invalid("the place of a tensor was passed where the tensor itself is needed"));
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

/// Compressed layouts (CSR, BSR) do not say that they are sparse, but have no strides.
fn is_sparse(tensor: &Tensor) -> bool {
    let strided = || tensor.f_detach().and_then(|tensor| tensor.f_as_strided([0_i64], [1_i64], None));
    tensor.defined() && (tensor.is_sparse() || (!tensor.is_mkldnn() && strided().is_err()))
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
