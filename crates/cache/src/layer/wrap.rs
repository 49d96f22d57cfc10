//! Wraps computations.

use crate::error::Result;
use crate::framework::Framework;
use crate::layer::cached::Cached;
use crate::layer::compute::{Compute, OfInputs, OfTensor};
use crate::layer::options::CacheOptions;
use crate::values::input::Inputs;
use crate::values::output::IntoOutput;

/// A tensor library whose modules can be wrapped.
pub trait Adapter: Framework {
    /// The result of wrapping: [`Cached`], or a type around it that is a module of the library.
    type Module: From<Cached<Self>> + AsRef<Cached<Self>>;
}

impl<F: Adapter> CacheOptions<F> {
    /// Wraps a computation of your own type. The name of the type is part of the identity
    /// ([`CacheOptions::check_structure`]).
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for unusable options or without a module id, [`crate::Error::Trainable`] for modules that are
    /// not frozen, and the errors of opening a store.
    pub fn wrap(self, compute: impl Compute<F> + 'static) -> Result<F::Module> {
        let name = std::any::type_name_of_val(&compute);
        Cached::new(self, Box::new(compute), name).map(Into::into)
    }

    /// Wraps a computation whose type name is not part of the identity, such as the adapter of a module.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_adapter(self, compute: impl Compute<F> + 'static) -> Result<F::Module> {
        Cached::new(self, Box::new(compute), "").map(Into::into)
    }

    /// Wraps a function of one tensor. In a folder, a [`CacheOptions::version`] is required.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_fn<O: IntoOutput<F> + 'static>(
        self,
        f: impl Fn(&F::Tensor) -> O + Send + 'static,
    ) -> Result<F::Module> {
        self.wrap_adapter(OfTensor(f))
    }

    /// Wraps a function of several tensors and plain arguments. Its errors become [`crate::Error::Compute`]. In a
    /// folder, a [`CacheOptions::version`] is required.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_inputs_fn<O: IntoOutput<F> + 'static>(
        self,
        f: impl Fn(&Inputs<F>) -> Result<O> + Send + 'static,
    ) -> Result<F::Module> {
        self.wrap_adapter(OfInputs(f))
    }
}
