//! Wraps modules of candle.

use candle_core::ModuleT;
use tensorcask_cache::Result;
use tensorcask_cache::layer::{Compute, IntoOutput, OfInputs, Settings, only};

use crate::framework::Candle;
use crate::module_handle::CachedModule;
use crate::types::{CacheOptions, Inputs, Output};
use crate::variables::Variables;

/// The methods of [`CacheOptions`] that wrap modules.
pub trait WrapModules: Sized {
    /// Wraps a module, which always runs in evaluation mode. `variables` are its weights and buffers. They are
    /// fingerprinted, and none of them may be a variable of candle ([`Variables::freeze`]). The type of the module is
    /// part of its identity. candle does not show the configuration of a module, so in a folder a
    /// [`CacheOptions::version`] is required.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_module(
        self,
        module: impl ModuleT + Send + 'static,
        variables: impl Into<Variables>,
    ) -> Result<CachedModule>;

    /// [`CacheOptions::wrap_inputs_fn`] for a function with variables, such as a transformer with several inputs. The
    /// variables are fingerprinted, and none of them may be a variable of candle.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_inputs_fn_with<O: IntoOutput<Candle> + 'static>(
        self,
        variables: impl Into<Variables>,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule>;
}

impl WrapModules for CacheOptions {
    fn wrap_module(
        self,
        module: impl ModuleT + Send + 'static,
        variables: impl Into<Variables>,
    ) -> Result<CachedModule> {
        self.wrap_adapter(WithVariables { inner: OfModule(module), variables: variables.into() })
    }

    fn wrap_inputs_fn_with<O: IntoOutput<Candle> + 'static>(
        self,
        variables: impl Into<Variables>,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule> {
        self.wrap_adapter(WithVariables { inner: OfInputs(f), variables: variables.into() })
    }
}

/// A computation, with the variables that the caller named.
struct WithVariables<C> {
    inner: C,
    variables: Variables,
}

impl<C: Compute<Candle>> Compute<Candle> for WithVariables<C> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        self.inner.compute(inputs)
    }

    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        self.inner.compute_training(inputs)
    }

    fn variables(&self) -> Result<Variables> {
        Ok(self.variables.shallow_clone())
    }

    fn settings(&self) -> Settings {
        self.inner.settings()
    }
}

struct OfModule<M>(M);

impl<M: ModuleT> OfModule<M> {
    fn forward(&self, inputs: &Inputs, train: bool) -> Result<Output> {
        self.0.forward_t(only(inputs)?, train).into_output()
    }
}

impl<M: ModuleT + Send> Compute<Candle> for OfModule<M> {
    fn compute(&self, inputs: &Inputs) -> Result<Output> {
        self.forward(inputs, false)
    }

    fn compute_training(&self, inputs: &Inputs) -> Result<Output> {
        self.forward(inputs, true)
    }

    fn settings(&self) -> Settings {
        Settings {
            structure: std::any::type_name::<M>().to_owned(),
            indistinct: Some("two modules of one type and with the same weights look the same from outside".to_owned()),
            ..Settings::default()
        }
    }
}
