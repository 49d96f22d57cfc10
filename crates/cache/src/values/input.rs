//! The arguments of a wrapped module: tensors with one batch dimension, and plain values.

use crate::error::{Result, invalid};
use crate::framework::Framework;

/// One argument.
#[derive(Debug)]
#[non_exhaustive]
pub enum Argument<F: Framework> {
    /// A tensor whose first dimension is the batch.
    Tensor(F::Tensor),
    /// A tensor that is the same for every sample. It is passed on unchanged, and is part of every key.
    Shared(F::Tensor),
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
    /// The place of an [`Argument::Tensor`] in a lookup by ids without tensors: see [`Inputs::tensors`].
    Batched,
}

impl<F: Framework> Argument<F> {
    fn shallow_clone(&self) -> Self {
        match self {
            Self::Tensor(tensor) => Self::Tensor(F::share(tensor)),
            Self::Shared(tensor) => Self::Shared(F::share(tensor)),
            Self::Int(number) => Self::Int(*number),
            Self::Float(number) => Self::Float(*number),
            Self::Str(text) => Self::Str(text.clone()),
            Self::Bool(flag) => Self::Bool(*flag),
            Self::Null => Self::Null,
            Self::Batched => Self::Batched,
        }
    }
}

/// A type that can be passed as one argument: a tensor, whose first dimension is the batch, or a plain value.
pub trait IntoArgument<F: Framework> {
    /// The argument.
    fn into_argument(self) -> Argument<F>;
}

macro_rules! into_argument {
    ($($type:ty => |$value:ident| $argument:expr),* $(,)?) => {
        $(impl<F: Framework> IntoArgument<F> for $type {
            fn into_argument(self) -> Argument<F> { let $value = self; $argument }
        })*
    };
}
into_argument! {
    Argument<F> => |argument| argument,
    i64 => |number| Argument::Int(number),
    f64 => |number| Argument::Float(number),
    &str => |text| Argument::Str(text.to_owned()),
    String => |text| Argument::Str(text),
    bool => |flag| Argument::Bool(flag),
    () => |_unit| Argument::Null,
}

/// The arguments of one call, by position or by name.
///
/// ```
/// # fn main() -> tensorcask_cache::Result<()> {
/// use tensorcask::Tensor;
/// use tensorcask_cache::Inputs;
///
/// let tokens = Tensor::from_slice(&[8, 64], &[0_i64; 512])?;
/// let mask = Tensor::from_slice(&[8, 64], &[1_i64; 512])?;
/// let inputs = Inputs::new().with(&tokens).with(&mask).named("layer", 3);
/// assert_eq!(inputs.batch_size()?, 8);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Inputs<F: Framework> {
    arguments: Vec<(Option<String>, Argument<F>)>,
}

impl<F: Framework> Default for Inputs<F> {
    fn default() -> Self {
        Self { arguments: Vec::new() }
    }
}

impl<F: Framework> Inputs<F> {
    /// The given arguments.
    pub fn from(arguments: impl IntoInputs<F>) -> Self {
        arguments.into_inputs()
    }

    /// No arguments.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The places of `count` tensors by position, for lookups by ids and for loaders. Add further places as
    /// [`Argument::Batched`].
    #[must_use]
    pub fn tensors(count: usize) -> Self {
        (0..count).fold(Self::new(), |inputs, _| inputs.with(Argument::Batched))
    }

    /// Adds an argument by position.
    #[must_use]
    pub fn with(mut self, argument: impl IntoArgument<F>) -> Self {
        self.arguments.push((None, argument.into_argument()));
        self
    }

    /// Adds an argument by name. The order of names does not matter for keys.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>, argument: impl IntoArgument<F>) -> Self {
        self.arguments.push((Some(name.into()), argument.into_argument()));
        self
    }

    /// The arguments by position, in order.
    pub fn positional(&self) -> impl Iterator<Item = &Argument<F>> {
        self.arguments.iter().filter(|(name, _)| name.is_none()).map(|(_, argument)| argument)
    }

    /// The argument of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Argument<F>> {
        self.arguments.iter().find(|(found, _)| found.as_deref() == Some(name)).map(|(_, argument)| argument)
    }

    /// The tensor at `position` among the arguments by position.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if there is none.
    pub fn tensor(&self, position: usize) -> Result<&F::Tensor> {
        match self.positional().nth(position) {
            Some(Argument::Tensor(tensor) | Argument::Shared(tensor)) => Ok(tensor),
            found => Err(invalid(format!("argument {position} is {found:?}: a tensor was expected"))),
        }
    }

    /// The tensor under `name`.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if there is none.
    pub fn tensor_named(&self, name: &str) -> Result<&F::Tensor> {
        match self.get(name) {
            Some(Argument::Tensor(tensor) | Argument::Shared(tensor)) => Ok(tensor),
            found => Err(invalid(format!("argument {name:?} is {found:?}: a tensor was expected"))),
        }
    }

    /// All arguments, those by position first and in order, then those with names, sorted by name.
    pub fn sorted(&self) -> Vec<(Option<&str>, &Argument<F>)> {
        let mut all: Vec<_> = self.arguments.iter().map(|(name, argument)| (name.as_deref(), argument)).collect();
        all.sort_by_key(|(name, _)| *name);
        all
    }

    /// The tensors with a batch dimension.
    pub(crate) fn batched(&self) -> impl Iterator<Item = &F::Tensor> {
        self.arguments.iter().filter_map(|(_, argument)| match argument {
            Argument::Tensor(tensor) => Some(tensor),
            _ => None,
        })
    }

    /// Whether tensors were passed, and not only their places.
    pub(crate) fn has_tensors(&self) -> bool {
        self.batched().next().is_some()
    }

    /// This call, with the tensors of `loaded`.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] unless exactly the tensors were loaded that this call has places for.
    pub(crate) fn filled(&self, mut loaded: Self) -> Result<Self> {
        if loaded.arguments.iter().any(|(_, argument)| !matches!(argument, Argument::Tensor(_))) {
            return Err(invalid(
                "plain or shared arguments were loaded: they are part of the key, and the keys were looked up before; \
                 say them beforehand, as the arguments of the call or of the batches, and load tensors only",
            ));
        }
        let places = |inputs: &Self| {
            let tensor = |argument: &Argument<F>| matches!(argument, Argument::Tensor(_) | Argument::Batched);
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
        let fill = |(name, argument): &(Option<String>, Argument<F>)| {
            let argument = match argument {
                Argument::Tensor(_) | Argument::Batched => {
                    take(name).ok_or_else(|| invalid("a tensor was not loaded"))?
                }
                other => other.shallow_clone(),
            };
            Ok((name.clone(), argument))
        };
        Ok(Self { arguments: self.arguments.iter().map(fill).collect::<Result<_>>()? })
    }

    /// The name, as used in messages, of the first tensor that `is` accepts.
    pub(crate) fn first_tensor(&self, is: impl Fn(&F::Tensor) -> Result<bool>) -> Result<Option<String>> {
        let mut position = 0_usize;
        for (name, argument) in &self.arguments {
            if let Argument::Tensor(tensor) | Argument::Shared(tensor) = argument
                && is(tensor)?
            {
                let at = name.as_ref().map_or_else(|| position.to_string(), |name| format!("{name:?}"));
                return Ok(Some(format!("argument {at}")));
            }
            position += usize::from(name.is_none());
        }
        Ok(None)
    }

    /// Refuses sparse tensors.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`], which names the argument.
    pub(crate) fn check_dense(&self) -> Result<()> {
        let Some(argument) = self.first_tensor(|tensor| Ok(!F::is_dense(tensor)))? else { return Ok(()) };
        Err(invalid(format!(
            "the {argument} is a sparse tensor, whose rows are not blocks of elements: pass tensor.to_dense()"
        )))
    }

    /// The number of samples in the batch.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if there is no batched tensor, one has no dimensions, their first dimensions differ,
    /// or a name occurs twice.
    pub fn batch_size(&self) -> Result<usize> {
        let mut names: Vec<&str> = self.arguments.iter().filter_map(|(name, _)| name.as_deref()).collect();
        names.sort_unstable();
        if let Some(twice) = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
            return Err(invalid(format!("the argument {:?} was passed twice", twice.0)));
        }
        if self.arguments.iter().any(|(_, argument)| matches!(argument, Argument::Batched)) {
            return Err(invalid("the place of a tensor was passed where the tensor itself is needed"));
        }
        let mut sizes = self.batched().map(|tensor| F::batch_len(tensor));
        let first = sizes.next().ok_or_else(|| invalid("no tensor was passed: a batch needs one at least"))?;
        if let Some(other) = sizes.find(|size| *size != first) {
            return Err(invalid(format!(
                "the tensors' first dimensions differ ({} and {}): all tensors of a call share one batch; pass what \
                 is the same for all samples as Argument::Shared",
                show(first),
                show(other)
            )));
        }
        first.ok_or_else(|| invalid("a tensor has no dimensions: its first is the batch"))
    }

    /// The device of results: that of the first batched tensor.
    pub(crate) fn device(&self) -> F::Device {
        self.batched().next().map_or(F::HOST, F::device)
    }

    /// The same call, for the samples at `positions`.
    pub(crate) fn select(&self, positions: &[usize]) -> Result<Self> {
        let pick = |argument: &Argument<F>| match argument {
            Argument::Tensor(tensor) => F::select(tensor, positions).map(Argument::Tensor),
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

fn show(size: Option<usize>) -> String {
    size.map_or("none".to_owned(), |size| size.to_string())
}

/// A type that can be passed as the arguments of a call: tensors by position, or [`Inputs`].
pub trait IntoInputs<F: Framework> {
    /// The arguments.
    fn into_inputs(self) -> Inputs<F>;
}

impl<F: Framework> IntoInputs<F> for Inputs<F> {
    fn into_inputs(self) -> Inputs<F> {
        self
    }
}

impl<F: Framework> IntoInputs<F> for &Inputs<F> {
    fn into_inputs(self) -> Inputs<F> {
        self.shallow_clone()
    }
}
