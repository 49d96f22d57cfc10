//! Computes some of the hits again, and compares.

use std::sync::atomic::Ordering;

use tch::{Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::counters::add;
use super::error::torch;
use super::output::Output;
use super::resolve::{Batch, Inner, Load, Loads};
use super::tree::{Ragged, join};
use crate::error::{Error, Result};

impl Inner {
    /// Computes some of the hits again, and compares. Which ones follows from a hash of their running number, so that
    /// no sample of a regular epoch is left out for ever.
    pub(super) fn verify(
        &self,
        batch: &Batch<'_>,
        missing: &[usize],
        kept: &dyn Fn(&[usize]) -> Result<Output>,
        load: Load<'_>,
    ) -> Result<()> {
        let Some(verification) = self.options.verification.filter(|v| batch.loads != Loads::Nothing && v.rate > 0.0) else {
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
        let Some(what) = differs(&kept(&chosen)?, &now, verification.relative, verification.absolute)? else {
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
            for ((name, a), (other, b)) in a.iter().zip(b) {
                if name != other {
                    return Ok(Some(format!("{name:?} against {other:?}")));
                }
                if let Some(what) = differs(a, b, relative, absolute)? {
                    return Ok(Some(format!("{name}: {what}")));
                }
            }
            Ok((a.len() != b.len()).then(|| format!("{} names against {}", a.len(), b.len())))
        }
        (a, b) => Ok((format!("{a:?}") != format!("{b:?}")).then(|| format!("{a:?} against {b:?}"))),
    }
}

/// Whether two numbers' tensors agree: equal kinds and shapes, and elements within the tolerance; NaN equals NaN.
/// Returns the largest difference where they do not.
fn difference(a: &Tensor, b: &Tensor, relative: f64, absolute: f64) -> Result<Option<String>> {
    let action = "compare outputs";
    let kinds = (a.f_kind().map_err(torch(action))?, b.f_kind().map_err(torch(action))?);
    if kinds.0 != kinds.1 || a.size() != b.size() {
        return Ok(Some(format!("{:?} {:?} against {:?} {:?}", kinds.0, a.size(), kinds.1, b.size())));
    }
    let wide = if matches!(kinds.0, Kind::ComplexFloat | Kind::ComplexDouble | Kind::ComplexHalf) {
        Kind::ComplexDouble
    } else {
        Kind::Double
    };
    let (a, b) = (a.f_to_kind(wide).map_err(torch(action))?, b.f_to_kind(wide).map_err(torch(action))?);
    if a.f_allclose(&b, relative, absolute, true).map_err(torch(action))? {
        return Ok(None);
    }
    let largest = a.f_sub(&b).and_then(|d| d.f_abs()).and_then(|d| d.f_max()).map_err(torch(action))?;
    let largest = largest.f_double_value(&[]).map_err(torch(action))?;
    Ok(Some(format!("elements differ by up to {largest:e}")))
}
