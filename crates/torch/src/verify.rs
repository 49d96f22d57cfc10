//! Computes some of the hits again, and compares.

use std::sync::atomic::Ordering;

use tch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::torch;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::resolve::{Batch, Inner, Load, Loads};
use crate::tree::{Ragged, join};
use tensorcask_cache::counters::add;

impl Inner {
    /// Computes some of the hits again, and compares. Which ones follows from a hash of their running number, so that
    /// no sample of a regular epoch is left out for ever.
    pub(crate) fn verify(
        &self,
        batch: &Batch<'_>,
        missing: &[usize],
        kept: &dyn Fn(&[usize]) -> Result<Output>,
        load: Load<'_>,
    ) -> Result<()> {
        let Some(verification) = self.options.verification.filter(|v| batch.loads != Loads::Nothing && v.rate > 0.0)
        else {
            return Ok(());
        };
        let hits = (0..batch.keys.len()).filter(|at| missing.binary_search(at).is_err());
        let due = |_: &usize| {
            let number = self.sampled.fetch_add(1, Ordering::Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "the low half of a hash")]
            let hash = xxh3_64(&number.to_le_bytes()) as u32;
            f64::from(hash) < verification.rate * 4_294_967_296.0
        };
        let chosen: Vec<usize> = hits.filter(due).collect();
        if chosen.is_empty() {
            return Ok(());
        }
        let now = self.compute(batch.sign, load, &chosen, &mut |output| self.as_read(output, chosen.len()))?;
        let Some(now) = now else { return Ok(()) };
        add(&self.counters.verified, chosen.len());
        let now = join(&now.iter().collect::<Vec<_>>(), Ragged::List)?;
        let Some(what) =
            differs(&kept(&chosen)?.to_device(Device::Cpu)?, &now, verification.relative, verification.absolute)?
        else {
            return Ok(());
        };
        let first = chosen.first().and_then(|&at| batch.keys.get(at)).map(|key| key.to_string()).unwrap_or_default();
        let error = Error::NotReproducible { samples: chosen.len(), first, what };
        if verification.fails {
            return Err(error);
        }
        self.warn(error.to_string());
        Ok(())
    }
}

/// Where two outputs differ by more than the tolerance.
fn differs(a: &Output, b: &Output, relative: f64, absolute: f64) -> Result<Option<String>> {
    let all = |a: &[Output], b: &[Output]| {
        if a.len() != b.len() {
            return Ok(Some(format!("{} items against {}", a.len(), b.len())));
        }
        for (a, b) in a.iter().zip(b) {
            if let Some(what) = differs(a, b, relative, absolute)? {
                return Ok(Some(what));
            }
        }
        Ok(None)
    };
    match (a, b) {
        (Output::Tensor(a), Output::Tensor(b)) => difference(a, b, relative, absolute),
        (Output::Each(a), Output::Each(b))
        | (Output::List(a), Output::List(b))
        | (Output::Tuple(a), Output::Tuple(b)) => all(a, b),
        (Output::Map(a), Output::Map(b)) => {
            // The order of names may change from call to call, as a hash map's does.
            let names = |items: &[(String, Output)]| {
                let mut names: Vec<String> = items.iter().map(|(name, _)| name.clone()).collect();
                names.sort_unstable();
                names
            };
            let (ours, theirs) = (names(a), names(b));
            if ours != theirs {
                return Ok(Some(format!("the names {ours:?} against {theirs:?}")));
            }
            for (name, a) in a {
                let Some((_, b)) = b.iter().find(|(other, _)| other == name) else { continue };
                if let Some(what) = differs(a, b, relative, absolute)? {
                    return Ok(Some(format!("{name}: {what}")));
                }
            }
            Ok(None)
        }
        (Output::Float(a), Output::Float(b)) => {
            let close = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= absolute + relative * b.abs();
            Ok((!close).then(|| format!("{a:?} against {b:?}")))
        }
        (Output::Null, Output::Null) => Ok(None),
        (Output::Bool(a), Output::Bool(b)) if a == b => Ok(None),
        (Output::Int(a), Output::Int(b)) if a == b => Ok(None),
        (Output::Str(a), Output::Str(b)) if a == b => Ok(None),
        (a, b) => Ok(Some(format!("{} against {}", shown(a), shown(b)))),
    }
}

/// A plain value as it is, anything else by its name.
fn shown(output: &Output) -> String {
    match output {
        Output::Null | Output::Bool(_) | Output::Int(_) | Output::Float(_) | Output::Str(_) => format!("{output:?}"),
        other => other.name().to_owned(),
    }
}

/// Whether two tensors agree: equal kinds and shapes, integers that are equal, and other numbers within the tolerance,
/// where NaN equals NaN. Returns what differs where they do not.
fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
    let action = "compare outputs";
    let kinds = (a.f_kind().map_err(torch(action))?, b.f_kind().map_err(torch(action))?);
    if kinds.0 != kinds.1 || a.size() != b.size() {
        return Ok(Some(format!("{:?} {:?} against {:?} {:?}", kinds.0, a.size(), kinds.1, b.size())));
    }
    let wide = match kinds.0 {
        Kind::Bool | Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64 => return unequal(a, b),
        Kind::ComplexFloat | Kind::ComplexDouble | Kind::ComplexHalf => Kind::ComplexDouble,
        _ => Kind::Double,
    };
    let (a, b) = (a.f_to_kind(wide).map_err(torch(action))?, b.f_to_kind(wide).map_err(torch(action))?);
    if a.f_allclose(&b, relative, absolute, true).map_err(torch(action))? {
        return Ok(None);
    }
    let largest = a.f_sub(&b).and_then(|d| d.f_abs()).and_then(|d| d.f_max()).map_err(torch(action))?;
    let largest = largest.f_double_value(&[]).map_err(torch(action))?;
    Ok(Some(format!("elements differ by up to {largest:e}")))
}

/// Integers in full: an `f64` holds them up to 2^53 only.
fn unequal(a: &Tensor, b: &Tensor) -> Result<Option<String>> {
    let action = "compare outputs";
    let flat = |t: &Tensor| t.f_reshape([-1]).and_then(|t| t.f_to_kind(Kind::Int64)).map_err(torch(action));
    let (a, b) = (flat(a)?, flat(b)?);
    let places =
        a.f_ne_tensor(&b).and_then(|ne| ne.f_nonzero()).and_then(|ne| ne.f_reshape([-1])).map_err(torch(action))?;
    if places.numel() == 0 {
        return Ok(None);
    }
    let first = places.f_int64_value(&[0]).map_err(torch(action))?;
    let value = |t: &Tensor| t.f_int64_value(&[first]).map_err(torch(action));
    Ok(Some(format!("{} integers differ, the first is {} against {}", places.numel(), value(&a)?, value(&b)?)))
}
