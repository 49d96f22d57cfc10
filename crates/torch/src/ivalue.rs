//! Conversion between TorchScript's values and those of the caching layer.

use tch::IValue;
use tensorcask_cache::layer::OutputLike;

use crate::error::{Result, invalid};
use crate::framework::Torch;
use crate::types::{Argument, Output};

/// Converts an argument for a TorchScript module.
#[must_use]
pub fn ivalue_of(argument: &Argument) -> IValue {
    match argument {
        Argument::Tensor(tensor) | Argument::Shared(tensor) => IValue::Tensor(tensor.shallow_clone()),
        Argument::Int(number) => IValue::Int(*number),
        Argument::Float(number) => IValue::Double(*number),
        Argument::Str(text) => IValue::String(text.clone()),
        Argument::Bool(flag) => IValue::Bool(*flag),
        _ => IValue::None,
    }
}

/// Converts one argument of a call.
///
/// # Errors
/// [`crate::Error::Invalid`] for lists and other values that cannot be arguments.
pub fn argument_from_ivalue(value: IValue) -> Result<Argument> {
    Ok(match value {
        IValue::Tensor(tensor) => Argument::Tensor(tensor),
        IValue::Int(number) => Argument::Int(number),
        IValue::Double(number) => Argument::Float(number),
        IValue::String(text) => Argument::Str(text),
        IValue::Bool(flag) => Argument::Bool(flag),
        IValue::None => Argument::Null,
        other => {
            return Err(invalid(format!(
                "an argument {other:?} is of no supported type: pass tensors, integers, floats, strings, booleans \
                 or None"
            )));
        }
    })
}

/// Converts the output of a TorchScript module.
///
/// # Errors
/// [`crate::Error::Invalid`] for values that cannot be stored.
pub fn output_from_ivalue(value: IValue) -> Result<Output> {
    fn all<T: OutputLike<Torch>>(items: Vec<T>) -> Output {
        Output::List(items.into_iter().map(OutputLike::output).collect())
    }
    let nested = |items: Vec<IValue>| items.into_iter().map(output_from_ivalue).collect::<Result<Vec<_>>>();
    Ok(match value {
        IValue::None => Output::Null,
        IValue::Tensor(tensor) => Output::Tensor(tensor),
        IValue::Double(number) => Output::Float(number),
        IValue::Int(number) => Output::Int(number),
        IValue::Bool(flag) => Output::Bool(flag),
        IValue::String(text) => Output::Str(text),
        IValue::Tuple(items) => Output::Tuple(nested(items)?),
        IValue::GenericList(items) => Output::List(nested(items)?),
        IValue::TensorList(items) => all(items),
        IValue::IntList(items) => all(items),
        IValue::DoubleList(items) => all(items),
        IValue::BoolList(items) => all(items),
        IValue::StringList(items) => all(items),
        IValue::GenericDict(items) => {
            let pair = |(name, item): (IValue, IValue)| match name {
                IValue::String(name) => Ok((name, output_from_ivalue(item)?)),
                other => Err(invalid(format!("a map's key is {other:?}: only strings can be stored"))),
            };
            Output::Map(items.into_iter().map(pair).collect::<Result<_>>()?)
        }
        other => return Err(invalid(format!("a TorchScript output {other:?} cannot be stored"))),
    })
}
