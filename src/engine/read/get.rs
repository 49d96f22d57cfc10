//! From keys to values.

use std::borrow::Cow;

use crate::codec::Decoder;
use crate::engine::lookup::prefault::prefault_rows;
use crate::engine::lookup::query::Query;
use crate::engine::observe::Operation;
use crate::engine::read::rows::{queries, with_rows};
use crate::engine::report::Lookup;
use crate::engine::rows::decode::value_of;
use crate::engine::rows::row::Row;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::Keys;
use crate::value::Value;

/// The values of `keys`, each with its own result.
pub(crate) fn get_batch(state: &State, keys: Keys<'_>) -> Result<Vec<Lookup>> {
    let span = state.metrics().begin(Operation::GetBatch);
    span.record("keys", keys.len() as u64);
    let Some(queries) = queries(state, keys)? else {
        state.metrics().read(&span, 0, keys.len(), 0);
        return Ok((0..keys.len()).map(|_| Ok(None)).collect());
    };
    let epoch = state.value_cache().epoch();
    let cache = state.value_cache();
    let mut values: Vec<Lookup> = match cache.is_on() {
        false => (0..queries.len()).map(|_| Ok(None)).collect(),
        true => queries.iter().map(|query| Ok(query.key.with_bytes(|bytes| cache.get(query.hash, bytes)))).collect(),
    };
    let uncached: Vec<usize> =
        values.iter().enumerate().filter(|(_, value)| matches!(value, Ok(None))).map(|(at, _)| at).collect();
    if !uncached.is_empty() {
        let wanted: Cow<'_, [Query<'_>]> = match uncached.len() == queries.len() {
            true => Cow::Borrowed(&queries),
            false => uncached.iter().filter_map(|at| queries.get(*at).copied()).collect(),
        };
        with_rows(state, &wanted, |located| {
            prefault_rows(state, &wanted, &located.rows, &|_, _| true)?;
            let mut decoder = Decoder::new();
            for ((at, query), row) in uncached.iter().zip(&*wanted).zip(&located.rows) {
                if let (Some(row), Some(place)) = (row, values.get_mut(*at)) {
                    let value = read_row(state, row, query.hash, &mut decoder, epoch);
                    *place = value.map(Some).map_err(|error| keys.item_error(*at, error));
                }
            }
            for (at, error) in located.errors {
                if let Some((at, place)) = uncached.get(at).and_then(|at| Some((*at, values.get_mut(*at)?))) {
                    *place = Err(keys.item_error(at, error));
                }
            }
            Ok::<(), Error>(())
        })??;
    }
    let found = values.iter().filter(|value| matches!(value, Ok(Some(_)))).count();
    let damaged = values.iter().filter(|value| value.is_err()).count();
    state.metrics().read(&span, found, values.len() - found - damaged, damaged);
    Ok(values)
}

fn read_row(state: &State, row: &Row<'_>, hash: u64, decoder: &mut Decoder, epoch: u64) -> Result<Value> {
    row.check(state.options().verify)?;
    let value = value_of(state.options(), row, decoder)?;
    let cache = state.value_cache();
    if let (true, Some(key)) = (cache.is_on(), row.key()) {
        cache.keep_read(hash, key, &value, epoch);
    }
    Ok(value)
}

/// Which of `keys` are there.
pub(crate) fn contains_batch(state: &State, keys: Keys<'_>) -> Result<Vec<bool>> {
    let Some(queries) = queries(state, keys)? else { return Ok(vec![false; keys.len()]) };
    with_rows(state, &queries, |located| match located.errors.into_iter().next() {
        Some((at, error)) => Err(keys.item_error(at, error)),
        None => Ok(located.rows.iter().map(Option::is_some).collect()),
    })?
}
