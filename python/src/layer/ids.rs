//! Ids of samples.

use pyo3::prelude::*;
use tensorcask::{KeyRef, Keys};
use tensorcask_cache::Ids;

use crate::errors::invalid;
use crate::store::keys::{Items, KeyBatch};

/// The ids that `object` lists: a tensor or array of integers, or a list of integers or strings.
///
/// # Errors
/// `InvalidError` for negative and mixed ids.
pub(crate) fn of_object(object: &Bound<'_, PyAny>) -> PyResult<Ids> {
    let py = object.py();
    let items = Items::of(object)?;
    let refused = || invalid(py, "ids are integers or strings: pass a tensor of integers or a list");
    KeyBatch::of(object, &items)?.with(|keys| match keys {
        Keys::Strs(texts) => Ok(Ids::Str(texts.iter().map(|&text| text.to_owned()).collect())),
        Keys::U64(numbers) => Ok(Ids::Int(numbers.to_vec())),
        keys => keys
            .iter()
            .map(|key| if let KeyRef::U64(id) = key { Ok(id) } else { Err(refused()) })
            .collect::<PyResult<_>>()
            .map(Ids::Int),
    })
}
