//! Wraps modules of `tch`.

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

/// The methods of [`CacheOptions`] that wrap modules, and the options that are specific to `tch`.
pub trait WrapModules: Sized {
    /// Returns results in page-locked memory, for fast copies to a GPU (default: off). Requires CUDA.
    #[must_use]
    fn pinned(self, pinned: bool) -> Self;

    /// Wraps a module. `variables` are its weights and buffers: usually `&var_store`, or its part under a prefix
    /// ([`Variables::under`]). They are fingerprinted and have to be frozen. The type of the module and its `Debug`
    /// output are part of the identity ([`CacheOptions::check_structure`]). A module that contains functions, such as
    /// those of `nn::func`, requires a [`CacheOptions::version`] in a folder.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_module(self, module: impl nn::Module + 'static, variables: impl Into<Variables>) -> Result<CachedModule>;

    /// Wraps a module that has a training mode. Only outputs in evaluation mode are cached.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_module_t(self, module: impl nn::ModuleT + 'static, variables: impl Into<Variables>)
    -> Result<CachedModule>;

    /// [`CacheOptions::wrap_inputs_fn`] for a function with variables, which are fingerprinted and have to be frozen.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_inputs_fn_with<O: IntoOutput<Torch> + 'static>(
        self,
        variables: impl Into<Variables>,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule>;

    /// Wraps a TorchScript module. It is set to evaluation mode and frozen. Its code, parameters and buffers are
    /// fingerprinted.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    fn wrap_script(self, module: CModule) -> Result<CachedModule> {
        self.wrap_script_method(module, "forward")
    }

    /// [`WrapModules::wrap_script`] for a method other than `forward`.
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

/// The structure of `module`, if it is part of the identity.
fn structure<M: fmt::Debug>(options: &CacheOptions, module: &M, variables: &Variables) -> Structure {
    if options.checks_structure() {
        Structure::of(module, variables, options.checks_weights())
    } else {
        Structure { text: String::new(), has_functions: false }
    }
}
