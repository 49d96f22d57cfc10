//! The weights of a module: their fingerprint, and the detection of changes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use candle_core::{Device, Tensor, Var, safetensors};
use tensorcask_cache::layer::{self, key_name};
use tensorcask_cache::{Error, Result};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::convert::{HostBytes, candle, host, stored_dtype};

/// The number of variables that each call inspects, in turn.
const EACH_CALL: usize = 64;

/// The number of places that are read of a large variable, and the bytes per place.
const PLACES: usize = 8;
const PLACE_BYTES: usize = 8;

/// Numbers the descriptions, so that no sign occurs twice.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// The named variables of a module: weights and buffers.
///
/// Convert them from tensors by name, as `candle_core::safetensors::load` returns them, or from the variables of a
/// `VarMap`: `Variables::from(&*var_map.data().lock().unwrap())`. They have to be the tensors that the module uses, not
/// copies: `VarBuilder::from_tensors` shares them if their dtype is requested.
///
/// candle does not count writes, and a write does not change the id of a tensor, so changes are detected by reading
/// bytes. Each call reads a few places of 64 variables, in turn (all bytes of small ones). A step of an optimizer
/// changes nearly every element of all variables, so the next call detects it. A write to a few elements may be missed,
/// and a write on a device other than the CPU always is: call [`weights_changed`](layer::Cached::weights_changed) after
/// these.
#[derive(Debug, Default)]
pub struct Variables {
    named: Vec<(String, Tensor)>,
    /// The hash of each variable when they were described.
    looks: Vec<u64>,
    generation: u64,
    turn: AtomicUsize,
}

impl Variables {
    /// For a module that has no variables, or whose variables are ignored.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The variables whose names start with `prefix`, a path such as `"encoder"`. Use it for a backbone that shares one
    /// `VarMap` with heads that are trained.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are none.
    pub fn under(self, prefix: &str) -> Result<Self> {
        let within =
            |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let named: Vec<_> = self.named.into_iter().filter(|(name, _)| within(name)).collect();
        if named.is_empty() {
            return Err(Error::invalid(format!("no variable is under {prefix:?}")));
        }
        Ok(named.into())
    }

    /// Treats the variables as frozen: they become plain tensors that share the storage of candle's variables. This
    /// does not keep an optimizer from changing them; its step is detected like any other write.
    #[must_use]
    pub fn freeze(self) -> Self {
        self.named.into_iter().map(|(name, tensor)| (name, tensor.detach())).collect::<Vec<_>>().into()
    }

    /// Names and tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.named.iter().map(|(name, tensor)| (name.as_str(), tensor))
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

    pub(crate) fn shallow_clone(&self) -> Self {
        self.named.clone().into()
    }
}

/// A hash of some bytes of a tensor. 0 if it is not on the CPU.
fn look(tensor: &Tensor) -> u64 {
    if !tensor.device().is_cpu() {
        return 0;
    }
    let Ok(bytes) = HostBytes::of(tensor) else { return 0 };
    if bytes.len() <= 4 * PLACES * PLACE_BYTES {
        return xxh3_64(&bytes);
    }
    let mut places = [0; PLACES * PLACE_BYTES];
    for (at, place) in places.chunks_exact_mut(PLACE_BYTES).enumerate() {
        let from = (bytes.len() - PLACE_BYTES) / (PLACES - 1) * at;
        if let Some(found) = bytes.get(from..from + PLACE_BYTES) {
            place.copy_from_slice(found);
        }
    }
    xxh3_64(&places)
}

impl layer::Variables for Variables {
    fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    fn check_frozen(&self) -> Result<()> {
        let mut trainable = self.iter().filter(|(_, tensor)| tensor.is_variable()).map(|(name, _)| name);
        match trainable.next() {
            None => Ok(()),
            Some(first) => Err(Error::Trainable { first: first.to_owned(), count: 1 + trainable.count() }),
        }
    }

    fn sign(&self, samples: usize) -> u64 {
        let len = self.named.len();
        let some = EACH_CALL.max(samples / 8).min(len);
        let start = self.turn.fetch_add(some, Ordering::Relaxed) % len.max(1);
        let all = self.named.iter().zip(&self.looks);
        let looked_at = all.clone().skip(start).chain(all).take(some);
        let differences = looked_at.map(|((_, tensor), former)| match look(tensor) {
            same if same == *former => 0,
            other => other | 1,
        });
        let sign = self.generation.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        differences.filter(|difference| *difference != 0).fold(sign, |sign, other| sign.rotate_left(5) ^ other)
    }

    fn describe(&mut self) {
        self.looks = self.named.iter().map(|(_, tensor)| look(tensor)).collect();
        self.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    }

    fn fingerprint(&self) -> Result<BTreeMap<String, String>> {
        let one = |(name, tensor): (&str, &Tensor)| {
            let host = host(tensor)?;
            let digest = xxh3_128(&HostBytes::of(&host)?);
            Ok((name.to_owned(), format!("{} {:?} {digest:032x}", key_name(stored_dtype(&host)?), host.dims())))
        };
        self.iter().map(one).collect()
    }

    /// Saves them in the safetensors format.
    fn save(&self, path: &Path) -> Result<()> {
        let named = self.iter().map(|(name, tensor)| Ok((name, host(tensor)?)));
        safetensors::save(&named.collect::<Result<HashMap<_, _>>>()?, path).map_err(candle("save variables"))
    }

    fn load(&self, path: &Path) -> Result<()> {
        let action = "load variables";
        let found = safetensors::load(path, &Device::Cpu).map_err(candle(action))?;
        let mut pairs = Vec::new();
        // All variables are checked first, so that a checkpoint of another module changes none of them.
        for (name, variable) in self.iter() {
            let new = found.get(name).filter(|new| new.dims() == variable.dims() && variable.is_contiguous());
            let new = new.ok_or_else(|| {
                let found = found.get(name).map_or("no such variable".to_owned(), |new| format!("{:?}", new.dims()));
                Error::invalid(format!(
                    "{} does not fit the module: expected a contiguous {name} of shape {:?}, found {found}",
                    path.display(),
                    variable.dims()
                ))
            })?;
            let new = new.to_dtype(variable.dtype()).and_then(|new| new.to_device(variable.device()));
            pairs.push((variable, new.map_err(candle(action))?));
        }
        for (variable, new) in pairs {
            // A flat view shares the storage.
            let set = variable.flatten_all().and_then(|all| all.slice_set(&new.flatten_all()?, 0, 0));
            set.map_err(candle(action))?;
        }
        Ok(())
    }
}

impl From<Vec<(String, Tensor)>> for Variables {
    fn from(mut named: Vec<(String, Tensor)>) -> Self {
        named.sort_by(|a, b| a.0.cmp(&b.0));
        let mut variables = Self { named, ..Self::default() };
        layer::Variables::describe(&mut variables);
        variables
    }
}

impl From<HashMap<String, Tensor>> for Variables {
    fn from(named: HashMap<String, Tensor>) -> Self {
        named.into_iter().collect::<Vec<_>>().into()
    }
}

impl From<&HashMap<String, Var>> for Variables {
    fn from(named: &HashMap<String, Var>) -> Self {
        named.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect::<Vec<_>>().into()
    }
}
