//! Why a sample is missing.

use std::fmt;

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::identity::record::Identity;
use crate::keys::key::BatchKeys;
use crate::layer::inner::Inner;

/// The explanation of a miss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhyMiss {
    /// Whether the sample is kept after all.
    pub kept: bool,
    /// Other identities of the same module id that keep the sample.
    pub elsewhere: Vec<Elsewhere>,
}

/// Another identity that keeps a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// The parts that differ, one line each; empty if the identity's record cannot be read.
    pub differences: Vec<String>,
}

impl fmt::Display for WhyMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kept {
            return f.write_str("it is kept");
        }
        if self.elsewhere.is_empty() {
            return f.write_str("it was never kept under this module id");
        }
        for (number, elsewhere) in self.elsewhere.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; or " };
            write!(f, "{separator}it is kept for another identity: {}", elsewhere.differences.join(", "))?;
        }
        Ok(())
    }
}

impl<F: Framework> Inner<F> {
    /// Explains why the only sample of `keys` is missing.
    pub(crate) fn why(&self, keys: &BatchKeys) -> Result<WhyMiss> {
        let Some(key) = keys.get(0).filter(|_| keys.len() == 1) else {
            return Err(invalid(format!("{} samples were asked about: ask about one", keys.len())));
        };
        self.check_weights(usize::MAX)?;
        let spaces = self.spaces();
        let reader = spaces.space(keys.kind())?.reader()?;
        let there = || reader.as_ref().map_or(Ok(false), |reader| reader.contains(&key));
        let kept = there()? || (spaces.write_neighbours(keys.kind()) && there()?);
        let ours = self.weights.lock().identity.clone();
        let differences = |record: Option<Identity>| record.map(|record| ours.differences(&record)).unwrap_or_default();
        let siblings = spaces.siblings(&key)?.into_iter();
        let elsewhere = siblings.map(|record| Elsewhere { differences: differences(record) }).collect();
        Ok(WhyMiss { kept, elsewhere })
    }
}
