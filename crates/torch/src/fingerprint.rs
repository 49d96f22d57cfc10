//! The variables of a module: their fingerprint, and the detection of changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::{Kind, Tensor, nn};
use tensorcask_cache::layer::{self, Variables as _};
use xxhash_rust::xxh3::xxh3_128;

use crate::convert::{host, kind, shape_of};
use crate::error::torch;
use crate::error::{Error, Result};
use crate::memory::{self, Watch};

/// Each call inspects all of up to so many variables; of more variables it inspects a few, in turn.
const FEW: usize = 64;

/// The minimum number that a call inspects of more variables.
const CLOSELY: usize = 1;

/// The next `some` of `len` positions, cyclically.
fn in_turn(turn: &AtomicUsize, len: usize, some: usize) -> impl Iterator<Item = usize> {
    let some = some.max(CLOSELY).min(len);
    let start = turn.fetch_add(some, Ordering::Relaxed) % len.max(1);
    (start..len).chain(0..start).take(some)
}

/// The named variables of a module: weights and buffers.
#[derive(Debug, Default)]
pub struct Variables {
    named: Vec<(String, Tensor)>,
    watch: Watch,
    /// Positions of the running statistics of batch normalisations among the variables.
    statistics: Vec<usize>,
    /// The next positions to inspect: among all variables, and among the statistics.
    turns: [AtomicUsize; 2],
}

impl Variables {
    /// For a module that has no variables, or whose variables are ignored.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The variables under `prefix`, a path of names such as `"encoder"` or `"encoder.layer.0"`, by their full names.
    /// Use it for a backbone that shares one `VarStore` with heads that are trained.
    ///
    /// ```
    /// # fn main() -> tensorcask_torch::Result<()> {
    /// use tch::{Device, nn};
    /// use tensorcask_torch::{CacheOptions, Variables, WrapModules as _};
    ///
    /// let variables = nn::VarStore::new(Device::Cpu);
    /// let backbone = nn::linear(variables.root() / "backbone", 16, 8, Default::default());
    /// let head = nn::linear(variables.root() / "head", 8, 2, Default::default());
    ///
    /// let options = CacheOptions::in_memory().module_id("backbone");
    /// let backbone = options.wrap_module(backbone, Variables::under(&variables, "backbone")?.freeze())?;
    /// assert_eq!(variables.trainable_variables().iter().filter(|tensor| tensor.requires_grad()).count(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are none.
    pub fn under(variables: &nn::VarStore, prefix: &str) -> Result<Self> {
        let within = |name: &str| {
            name.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('.'))
        };
        let mut all: Vec<(String, Tensor)> = variables.variables().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let (found, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| within(name));
        if !found.is_empty() {
            return Ok(found.into());
        }
        let mut firsts: Vec<&str> = others.iter().filter_map(|(name, _)| name.split('.').next()).collect();
        firsts.dedup();
        Err(Error::invalid(format!("no variable is under {prefix:?}: the names start with {}", firsts.join(", "))))
    }

    /// Freezes the variables: they no longer require gradients.
    #[must_use]
    pub fn freeze(self) -> Self {
        for (_, tensor) in &self.named {
            let _same = tensor.set_requires_grad(false);
        }
        self
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.named.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The variable of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.iter().find(|(found, _)| *found == name).map(|(_, tensor)| tensor)
    }

    /// The number of variables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether there are no variables.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

impl layer::Variables for Variables {
    fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Returns an error if an optimizer could change the variables.
    ///
    /// # Errors
    /// [`Error::Trainable`].
    fn check_frozen(&self) -> Result<()> {
        let mut trainable = self.iter().filter(|(_, tensor)| memory::requires_grad(tensor)).map(|(name, _)| name);
        match trainable.next() {
            None => Ok(()),
            Some(first) => Err(Error::Trainable { first: first.to_owned(), count: 1 + trainable.count() }),
        }
    }

    /// A number that changes with the variables, cheap enough for every call. libtorch counts most writes to a tensor.
    /// A replaced tensor has another storage. A backward pass leaves a gradient or writes to it, which reveals the
    /// steps of libtorch's SGD, as these are not counted. Three kinds of change remain: to the running statistics of a
    /// batch normalisation, by a `set_data` to other elements of the same storage, and of `requires_grad`. These are
    /// detected when a variable is inspected. A call inspects all of a few variables. Of many it inspects some, in
    /// turn: one for every eight of its `samples`, and one statistic and four more for every further sample.
    fn sign(&self, samples: usize) -> u64 {
        let len = self.named.len();
        if len <= FEW {
            return self.watch.sign(0..len);
        }
        let [turn, statistics_turn] = &self.turns;
        let statistics = in_turn(statistics_turn, self.statistics.len(), samples.saturating_sub(1).saturating_mul(4));
        let statistics = statistics.filter_map(|at| self.statistics.get(at).copied());
        self.watch.sign(in_turn(turn, len, samples / 8).chain(statistics))
    }

    /// Records the present state, which [`sign`](crate::layer::Variables::sign) compares with, and keeps the storages
    /// alive.
    fn describe(&mut self) {
        self.watch = Watch::new(self.named.iter().map(|(_, tensor)| tensor));
        let names = self.named.iter().map(|(name, _)| name).enumerate();
        let statistics = names.filter(|(_, name)| name.ends_with("running_mean") || name.ends_with("running_var"));
        self.statistics = statistics.map(|(at, _)| at).collect();
    }

    /// A digest of each variable's dtype, shape and bytes. O(bytes).
    ///
    /// # Errors
    /// [`crate::Error::Framework`] if a variable cannot be read.
    fn fingerprint(&self) -> Result<BTreeMap<String, String>> {
        let one = |(name, tensor): (&str, &Tensor)| {
            if !tensor.defined() {
                return Err(Error::invalid(format!("the variable {name:?} is undefined: leave it out")));
            }
            if !memory::is_strided(tensor) && !tensor.is_sparse() && !tensor.is_mkldnn() {
                return Err(Error::invalid(format!(
                    "the layout of the variable {name:?} cannot be read: leave it out"
                )));
            }
            let of = kind(tensor)?;
            let host = match of {
                // Scale and zero point are not part of the bytes.
                Kind::QInt8 | Kind::QUInt8 | Kind::QInt32 => {
                    host(&tensor.f_dequantize().map_err(torch("dequantize a variable"))?)?
                }
                _ => host(tensor)?,
            };
            let digest = xxh3_128(memory::bytes(&host)?);
            Ok((name.to_owned(), format!("{of:?} {:?} {digest:032x}", shape_of(&host))))
        };
        self.iter().map(one).collect()
    }

    /// Saves the variables to a file that `VarStore::load` reads. The format is safetensors for the extension
    /// `.safetensors`, and libtorch's own format otherwise. `VarStore::load` expects Python's format for `.pt` and
    /// `.bin`, however.
    fn save(&self, path: &std::path::Path) -> Result<()> {
        match Format::of(path) {
            Format::Safetensors => {
                let named: Vec<(&str, Tensor)> =
                    self.iter().map(|(name, t)| Ok((name, host(t)?))).collect::<Result<_>>()?;
                Tensor::write_safetensors(&named, path).map_err(torch("save variables"))
            }
            Format::Python => Err(Error::invalid(format!(
                "{}: VarStore::load takes this ending for a file that Python wrote, which cannot be written here: save \
                 under a name that ends in .safetensors or .ot",
                path.display()
            ))),
            Format::Own => Tensor::save_multi(&self.iter().collect::<Vec<_>>(), path).map_err(torch("save variables")),
        }
    }

    /// Loads all variables from a file that [`Variables::save`], `VarStore::save` or Python wrote.
    fn load(&self, path: &std::path::Path) -> Result<()> {
        let action = "load variables";
        let named = match Format::of(path) {
            Format::Safetensors => Tensor::read_safetensors(path),
            // `VarStore::save` uses its own format for this extension too.
            Format::Python => Tensor::loadz_multi(path).or_else(|error| Tensor::load_multi(path).map_err(|_| error)),
            Format::Own => Tensor::load_multi(path),
        };
        let named = named.map_err(torch(action))?;
        let found: HashMap<String, Tensor> = named.into_iter().collect();
        // All variables are checked first, so that a checkpoint of another module changes none of them.
        for (name, variable) in self.iter() {
            let fits = found.get(name).map(|tensor| tensor.size() == variable.size());
            if fits != Some(true) {
                let found = found.get(name).map_or("no such variable".to_owned(), |t| format!("{:?}", t.size()));
                return Err(Error::invalid(format!(
                    "{} does not fit the module: expected {name} of shape {:?}, found {found}",
                    path.display(),
                    variable.size()
                )));
            }
        }
        let _guard = tch::no_grad_guard();
        for (name, variable) in self.iter() {
            if let Some(tensor) = found.get(name) {
                variable.shallow_clone().f_copy_(tensor).map_err(torch(action))?;
            }
        }
        Ok(())
    }
}

/// The format of a file of variables, determined by its name as in `VarStore::load`.
enum Format {
    Safetensors,
    Python,
    Own,
}

impl Format {
    fn of(path: &std::path::Path) -> Self {
        match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("safetensors") => Self::Safetensors,
            Some("pt" | "bin") => Self::Python,
            _ => Self::Own,
        }
    }
}

impl From<Vec<(String, Tensor)>> for Variables {
    fn from(mut variables: Vec<(String, Tensor)>) -> Self {
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        let mut variables = Self { named: variables, ..Self::default() };
        variables.describe();
        variables
    }
}

impl From<HashMap<String, Tensor>> for Variables {
    fn from(variables: HashMap<String, Tensor>) -> Self {
        variables.into_iter().collect::<Vec<_>>().into()
    }
}

impl From<&nn::VarStore> for Variables {
    fn from(variables: &nn::VarStore) -> Self {
        variables.variables().into()
    }
}
