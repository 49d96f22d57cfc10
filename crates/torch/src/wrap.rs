//! Wrapping modules of `tch`.

use std::fmt;

use tch::{CModule, nn};
use tensorcask_cache::layer::{IntoOutput, OfInputs};

use crate::error::Result;
use crate::fingerprint::Variables;
use crate::framework::Torch;
use crate::module::{OfModule, OfModuleT, OfScript, WithVariables};
use crate::module_handle::CachedModule;
use crate::structure::Structure;
use crate::types::{CacheOptions, Inputs};

/// What [`CacheOptions`] can wrap beside functions, and the options that only `tch` has.
pub trait WrapModules: Sized {
    /// Puts results that are read or computed into page-locked memory, for quick copies to a GPU (default: off). Needs CUDA.
    #[must_use]
    fn pinned(self, pinned: bool) -> Self;

    /// Wraps a module. `variables` are its weights and buffers, most simply `&var_store`, or the part of one under a
    /// prefix ([`Variables::under`]): they are fingerprinted and have to be frozen. Its type and its `Debug` count as well
    /// ([`CacheOptions::check_structure`]); a module with functions in it, as of `nn::func`, has to have a
    /// [`CacheOptions::version`] in a folder.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_module(self, module: impl nn::Module + 'static, variables: impl Into<Variables>) -> Result<CachedModule>;

    /// Wraps a module that behaves differently in training. Only evaluation is cached.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_module_t(self, module: impl nn::ModuleT + 'static, variables: impl Into<Variables>)
    -> Result<CachedModule>;

    /// [`CacheOptions::wrap_inputs_fn`] for a function that uses variables: they are fingerprinted and have to be frozen.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_inputs_fn_with<O: IntoOutput<Torch> + 'static>(
        self,
        variables: impl Into<Variables>,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule>;

    /// Wraps a TorchScript module. It is set to evaluation and frozen; its code, parameters and buffers are
    /// fingerprinted.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_script(self, module: CModule) -> Result<CachedModule> {
        self.wrap_script_method(module, "forward")
    }

    /// [`WrapModules::wrap_script`] for another method than `forward`.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_script_method(self, module: CModule, method: &str) -> Result<CachedModule>;
}

impl WrapModules for CacheOptions {
    fn pinned(self, pinned: bool) -> Self {
        self.settings(|mut settings| {
            settings.pinned = pinned;
            settings
        })
    }

    fn wrap_module(self, module: impl nn::Module + 'static, variables: impl Into<Variables>) -> Result<CachedModule> {
        let variables = variables.into();
        let structure = structure(&self, &module, &variables);
        self.wrap_adapter(WithVariables { inner: OfModule(module, structure), variables })
    }

    fn wrap_module_t(
        self,
        module: impl nn::ModuleT + 'static,
        variables: impl Into<Variables>,
    ) -> Result<CachedModule> {
        let variables = variables.into();
        let structure = structure(&self, &module, &variables);
        self.wrap_adapter(WithVariables { inner: OfModuleT(module, structure), variables })
    }

    fn wrap_inputs_fn_with<O: IntoOutput<Torch> + 'static>(
        self,
        variables: impl Into<Variables>,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule> {
        self.wrap_adapter(WithVariables { inner: OfInputs(f), variables: variables.into() })
    }

    fn wrap_script_method(self, module: CModule, method: &str) -> Result<CachedModule> {
        self.wrap_adapter(OfScript::new(module, method)?)
    }
}

/// What `module` says of its structure, if that is looked at.
fn structure<M: fmt::Debug>(options: &CacheOptions, module: &M, variables: &Variables) -> Structure {
    if options.checks_structure() {
        Structure::of(module, variables, options.checks_weights())
    } else {
        Structure { text: String::new(), has_functions: false }
    }
}
