//! The computations that can be wrapped besides functions: `nn::Module`s, `nn::ModuleT`s and TorchScript modules.

use tch::{CModule, Device, nn};
use tensorcask_cache::TemporaryFolder;
use tensorcask_cache::layer::{Compute, Settings, only};

use crate::error::{Error, Result, invalid, torch};
use crate::fingerprint::Variables;
use crate::framework::Torch;
use crate::ivalue::{ivalue_of, output_from_ivalue};
use crate::structure::Structure;
use crate::types::{Inputs, Output};

/// A computation, with the variables that the caller named.
pub(crate) struct WithVariables<C> {
    pub inner: C,
    pub variables: Variables,
}

impl<C: Compute<Torch>> Compute<Torch> for WithVariables<C> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        self.inner.compute(inputs)
    }

    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        self.inner.compute_training(inputs)
    }

    fn variables(&self) -> Result<Variables> {
        let named = self.variables.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
        Ok(named.collect::<Vec<_>>().into())
    }

    fn settings(&self) -> Settings {
        self.inner.settings()
    }
}

/// The settings that follow from the structure of a module.
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

impl<M: nn::Module> Compute<Torch> for OfModule<M> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        Ok(Output::Tensor(self.0.forward(only(inputs)?)))
    }

    fn settings(&self) -> Settings {
        of_structure(&self.1)
    }
}

/// A module with a training mode, which runs in evaluation mode.
pub(crate) struct OfModuleT<M>(pub M, pub Structure);

impl<M: nn::ModuleT> Compute<Torch> for OfModuleT<M> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        Ok(Output::Tensor(self.0.forward_t(only(inputs)?, false)))
    }

    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        Ok(Output::Tensor(self.0.forward_t(only(inputs)?, true)))
    }

    fn settings(&self) -> Settings {
        of_structure(&self.1)
    }
}

/// A TorchScript module, in evaluation mode and frozen.
pub(crate) struct OfScript {
    module: CModule,
    method: String,
    /// A digest of the module as TorchScript would save it: its code, parameters and buffers.
    archive: String,
}

impl OfScript {
    pub(crate) fn new(mut module: CModule, method: &str) -> Result<Self> {
        module.f_set_eval().map_err(torch("set a TorchScript module to evaluation"))?;
        for (_, parameter) in module.named_parameters().map_err(torch("list the parameters of a TorchScript module"))? {
            // The layer owns the module, so nothing trains it.
            let _frozen = parameter.f_set_requires_grad(false).map_err(torch("freeze a parameter"))?;
        }
        let archive = archive_digest(&module)?;
        Ok(Self { module, method: method.to_owned(), archive })
    }
}

/// A digest of a module's archive. libtorch writes the same archive for the same module under the same file name,
/// except for marks on tensors that others hold as well, such as those of `named_parameters`. Therefore the module is
/// saved, read back and saved again.
fn archive_digest(module: &CModule) -> Result<String> {
    let folder = TemporaryFolder::new(None)?;
    let path = folder.path().join("module.pt");
    module.save(&path).map_err(torch("save a TorchScript module to be fingerprinted"))?;
    let copy = CModule::load_on_device(&path, Device::Cpu).map_err(torch("read a TorchScript module back"))?;
    copy.save(&path).map_err(torch("save a TorchScript module to be fingerprinted"))?;
    let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    Ok(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)))
}

impl Compute<Torch> for OfScript {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        let mut arguments = Vec::new();
        for (name, argument) in inputs.sorted() {
            if let Some(name) = name {
                return Err(invalid(format!("TorchScript modules take arguments by position, but {name:?} was named")));
            }
            arguments.push(ivalue_of(argument));
        }
        let output = self.module.method_is(&self.method, &arguments).map_err(torch("run a TorchScript module"))?;
        output_from_ivalue(output)
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
