//! What can be wrapped: functions, `nn::Module`s, `nn::ModuleT`s, TorchScript modules, and types of the user's.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tch::{CModule, Device, IValue, Tensor, nn};

use crate::error::Result;
use crate::error::{invalid, torch};
use crate::fingerprint::Variables;
use crate::input::{Argument, Inputs};
use crate::output::{IntoOutput, Output};
use crate::structure::Structure;

/// What a wrapped object says of itself; options that the caller sets go first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The folder that its outputs are kept in.
    pub module_id: Option<String>,
    /// A version of its code.
    pub version: Option<String>,
    /// What it was constructed with.
    pub arguments: BTreeMap<String, String>,
    /// Digests of weights that are not among its variables, by name.
    pub weights: BTreeMap<String, String>,
    /// What it is, such as the name of its type and its configuration: another never meets its outputs.
    pub structure: String,
    /// Why all of the above cannot tell it from another computation, if so: outputs in a folder then ask for a version.
    pub indistinct: Option<String>,
}

/// A computation whose outputs never change for the same inputs: what [`crate::CachedModule`] wraps.
///
/// Implement it for a type of your own to give it settings; functions and modules have adapters in
/// [`crate::CacheOptions`].
pub trait Compute: Send {
    /// The output for a batch. Called without gradients, by one thread at a time.
    ///
    /// # Errors
    /// The computation's own; nothing is kept then.
    fn compute(&self, inputs: &Inputs) -> Result<Output>;

    /// The output in training mode, which is neither looked up nor kept. By default the same computation.
    ///
    /// # Errors
    /// As [`Compute::compute`].
    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        self.compute(inputs)
    }

    /// Weights and buffers, for the fingerprint and the check that they are frozen.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn variables(&self) -> Result<Variables> {
        Ok(Variables::none())
    }

    /// What it says of itself. Nothing else tells two values of this type apart that have the same variables: what its
    /// other fields hold belongs into the arguments or the structure.
    fn settings(&self) -> Settings {
        Settings::default()
    }
}

/// The one tensor of a call.
fn only(inputs: &Inputs) -> Result<&Tensor> {
    let mut arguments = inputs.sorted().into_iter();
    match (arguments.next(), arguments.next()) {
        (Some((None, Argument::Tensor(tensor))), None) => Ok(tensor),
        _ => Err(invalid(
            "the wrapped module takes one tensor, but other arguments were passed: wrap a function of &Inputs",
        )),
    }
}

/// Nothing can be asked of a closure but to run.
fn of_closure() -> Settings {
    let why = "two closures, or one before and after a change of its code, look the same from outside";
    Settings { indistinct: Some(why.to_owned()), ..Settings::default() }
}

/// A function of one tensor.
pub(crate) struct OfTensor<F>(pub F);

impl<F: Fn(&Tensor) -> O + Send, O: IntoOutput> Compute for OfTensor<F> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        (self.0)(only(inputs)?).into_output()
    }

    fn settings(&self) -> Settings {
        of_closure()
    }
}

/// A function of all arguments.
pub(crate) struct OfInputs<F>(pub F);

impl<F: Fn(&Inputs) -> Result<O> + Send, O: Into<Output>> Compute for OfInputs<F> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        (self.0)(inputs).map(Into::into)
    }

    fn settings(&self) -> Settings {
        of_closure()
    }
}

/// Anything, with variables of the caller's.
pub(crate) struct WithVariables<C> {
    pub inner: C,
    pub variables: Mutex<Variables>,
}

impl<C: Compute> Compute for WithVariables<C> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        self.inner.compute(inputs)
    }

    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        self.inner.compute_training(inputs)
    }

    fn variables(&self) -> Result<Variables> {
        let variables = self.variables.lock();
        Ok(variables.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect::<Vec<_>>().into())
    }

    fn settings(&self) -> Settings {
        self.inner.settings()
    }
}

/// What a module says of itself.
fn of_structure(structure: &Structure) -> Settings {
    let why = "functions are part of the module, and two functions look the same from outside";
    Settings {
        structure: structure.text.clone(),
        indistinct: structure.has_functions.then(|| why.to_owned()),
        ..Settings::default()
    }
}

/// A module.
pub(crate) struct OfModule<M>(pub M, pub Structure);

impl<M: nn::Module> Compute for OfModule<M> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        Ok(self.0.forward(only(inputs)?).into())
    }

    fn settings(&self) -> Settings {
        of_structure(&self.1)
    }
}

/// A module with an evaluation mode: always evaluated in it.
pub(crate) struct OfModuleT<M>(pub M, pub Structure);

impl<M: nn::ModuleT> Compute for OfModuleT<M> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        Ok(self.0.forward_t(only(inputs)?, false).into())
    }

    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        Ok(self.0.forward_t(only(inputs)?, true).into())
    }

    fn settings(&self) -> Settings {
        of_structure(&self.1)
    }
}

/// A TorchScript module, in evaluation mode and frozen.
pub(crate) struct OfScript {
    module: CModule,
    method: String,
    /// Of the code, the parameters and the buffers: of the module as TorchScript would save it.
    archive: String,
}

impl OfScript {
    pub(crate) fn new(mut module: CModule, method: &str) -> Result<Self> {
        module.f_set_eval().map_err(torch("set a TorchScript module to evaluation"))?;
        for (_, parameter) in module.named_parameters().map_err(torch("list the parameters of a TorchScript module"))? {
            // The module is ours from here on: nothing trains it.
            let _frozen = parameter.f_set_requires_grad(false).map_err(torch("freeze a parameter"))?;
        }
        let archive = archive_digest(&module)?;
        Ok(Self { module, method: method.to_owned(), archive })
    }
}

/// libtorch writes its archives the same for the same module under the same file name, but for marks of what others hold
/// as well, such as the tensors of `named_parameters`. Nobody holds what was just read.
fn archive_digest(module: &CModule) -> Result<String> {
    let folder = tensorcask_cache::store::temporary::TemporaryFolder::new(None)?;
    let path = folder.path().join("module.pt");
    module.save(&path).map_err(torch("save a TorchScript module to be fingerprinted"))?;
    let copy = CModule::load_on_device(&path, Device::Cpu).map_err(torch("read a TorchScript module back"))?;
    copy.save(&path).map_err(torch("save a TorchScript module to be fingerprinted"))?;
    let bytes = std::fs::read(&path).map_err(|error| crate::error::Error::io("read", &path, error))?;
    Ok(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)))
}

impl Compute for OfScript {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        let mut arguments = Vec::new();
        for (name, argument) in inputs.sorted() {
            if let Some(name) = name {
                return Err(invalid(format!("TorchScript modules take arguments by position, but {name:?} was named")));
            }
            arguments.push(IValue::from(argument));
        }
        let output = self.module.method_is(&self.method, &arguments).map_err(torch("run a TorchScript module"))?;
        output.try_into()
    }

    fn variables(&self) -> Result<Variables> {
        let parameters = self.module.named_parameters();
        parameters.map(Into::into).map_err(torch("list the parameters of a TorchScript module"))
    }

    fn settings(&self) -> Settings {
        Settings {
            arguments: [("TorchScript method".to_owned(), self.method.clone())].into(),
            weights: [("TorchScript archive".to_owned(), self.archive.clone())].into(),
            ..Settings::default()
        }
    }
}
