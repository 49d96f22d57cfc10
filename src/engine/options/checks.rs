//! Checks that several kinds of options share.

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Fails if floats cannot be stored as `dtype`.
pub(crate) fn check_store_as(dtype: Option<Dtype>) -> Result<()> {
    match dtype {
        None | Some(Dtype::F16 | Dtype::BF16 | Dtype::F32) => Ok(()),
        Some(dtype) => Err(Error::invalid(format!("cannot store as {dtype}: choose F16, BF16 or F32"))),
    }
}

/// Fails if `share` is not from 0 to 1.
pub(crate) fn check_share(name: &str, share: f64) -> Result<()> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(Error::invalid(format!("the option {name} is {share}: give a share from 0 to 1")))
}
