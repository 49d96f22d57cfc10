//! Recomputes some of the hits, and compares.

use xxhash_rust::xxh3::xxh3_64;

use crate::counters::add;
use crate::error::{Error, Result};
use crate::framework::{Framework, is_close};
use crate::layer::inner::{Batch, Inner, Load, Loads};
use crate::values::output::Output;
use crate::values::tree::{Ragged, join, split};

impl<F: Framework> Inner<F> {
    /// Recomputes some of the hits, and compares. A hash of a hit's running number selects it, so that in epochs of
    /// equal order every sample is selected at some time.
    pub(crate) fn verify(
        &self,
        batch: &Batch<'_>,
        missing: &[usize],
        kept: &dyn Fn(&[usize]) -> Result<Output<F>>,
        load: Load<'_, F>,
    ) -> Result<()> {
        let Some(verification) = self.verification.lock().filter(|v| batch.loads != Loads::Nothing && v.rate > 0.0)
        else {
            return Ok(());
        };
        let hits = (0..batch.keys.len()).filter(|at| missing.binary_search(at).is_err());
        let due = |_: &usize| {
            let number = self.next_hit();
            #[expect(clippy::cast_possible_truncation, reason = "the low half of a hash")]
            let hash = xxh3_64(&number.to_le_bytes()) as u32;
            f64::from(hash) < verification.rate * 4_294_967_296.0
        };
        let chosen: Vec<usize> = hits.filter(due).collect();
        if chosen.is_empty() {
            return Ok(());
        }
        let now = self.compute(batch.sign, load, &chosen, &mut |output| self.as_read(split(output, chosen.len())?))?;
        let Some(now) = now else { return Ok(()) };
        add(&self.counters.verified, chosen.len());
        let now = join(&now.iter().collect::<Vec<_>>(), Ragged::List)?;
        let Some(what) =
            differs(&kept(&chosen)?.to_device(F::HOST)?, &now, verification.relative, verification.absolute)?
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

/// Describes where two outputs differ by more than the tolerance.
fn differs<F: Framework>(a: &Output<F>, b: &Output<F>, relative: f64, absolute: f64) -> Result<Option<String>> {
    let all = |a: &[Output<F>], b: &[Output<F>]| {
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
        (Output::Tensor(a), Output::Tensor(b)) => F::difference(a, b, relative, absolute),
        (Output::Each(a), Output::Each(b))
        | (Output::List(a), Output::List(b))
        | (Output::Tuple(a), Output::Tuple(b)) => all(a, b),
        (Output::Map(a), Output::Map(b)) => {
            // The order of names may change between calls, as with a hash map.
            let names = |items: &[(String, Output<F>)]| {
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
            Ok((!is_close(*a, *b, relative, absolute)).then(|| format!("{a:?} against {b:?}")))
        }
        (Output::Null, Output::Null) => Ok(None),
        (Output::Bool(a), Output::Bool(b)) if a == b => Ok(None),
        (Output::Int(a), Output::Int(b)) if a == b => Ok(None),
        (Output::Str(a), Output::Str(b)) if a == b => Ok(None),
        (a, b) => Ok(Some(format!("{} against {}", shown(a), shown(b)))),
    }
}

/// A plain value, or the name of any other output.
fn shown<F: Framework>(output: &Output<F>) -> String {
    match output {
        Output::Null | Output::Bool(_) | Output::Int(_) | Output::Float(_) | Output::Str(_) => format!("{output:?}"),
        other => other.name().to_owned(),
    }
}
