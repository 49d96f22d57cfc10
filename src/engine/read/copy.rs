//! Copies rows into the caller's buffers: one tensor, or several leaves in one pass.

use std::sync::Arc;

use crate::codec::Decoder;
use crate::engine::lookup::prefault::prefault_rows;
use crate::engine::lookup::query::Located;
use crate::engine::observe::{Counter, Operation};
use crate::engine::options::Options;
use crate::engine::read::get::get_batch;
use crate::engine::read::parallel::{Part, in_parts};
use crate::engine::read::plan::{Plan, Step};
use crate::engine::read::rows::{queries, with_rows};
use crate::engine::read::wanted::{Wanted, WantedLeaf, copy_value};
use crate::engine::rows::decode::StoredLeaf;
use crate::engine::rows::row::Row;
use crate::engine::state::State;
use crate::error::{Error, ItemError, Result};
use crate::key::Keys;
use crate::prefetch::{lines_at_start, prefetch_lines};
use crate::schema::RowSchema;
use crate::segment::columns::LeafBytes;

/// Copies the `wanted` leaves of `keys` into `outs`, one buffer a leaf, row after row; the places of missing rows are
/// left unchanged.
pub(crate) fn get_leaves_into(
    state: &State,
    keys: Keys<'_>,
    wanted: &Wanted<'_>,
    mut outs: Vec<&mut [u8]>,
    found: &mut [bool],
) -> Result<usize> {
    found.fill(false);
    if state.value_cache().is_on() {
        return get_leaves_into_cached(state, keys, wanted, &mut outs, found);
    }
    let span = state.metrics().begin(Operation::GetBatch);
    span.record("keys", keys.len() as u64);
    let Some(queries) = queries(state, keys)? else {
        state.metrics().read(&span, 0, keys.len(), 0);
        return Ok(0);
    };
    let whole = Part { first: 0, queries: &queries, outs, found };
    let widths: Vec<usize> = wanted.leaves.iter().map(|leaf| leaf.width).collect();
    // Pages on disk are prefaulted for the whole batch at once: the disk is slower than any copy.
    let threads = if state.residency().is_suspected() { 1 } else { state.options().read_threads };
    let copy =
        |part: Part<'_, '_>| with_rows(state, part.queries, |located| copy_rows(state, located, part, keys, wanted))?;
    let (mut hits, mut damaged) = (0, Vec::new());
    for copied in in_parts(threads, &widths, whole, copy) {
        let copied = copied?;
        hits += copied.hits;
        damaged.extend(copied.damaged);
    }
    state.metrics().read(&span, hits, queries.len() - hits - damaged.len(), damaged.len());
    state.metrics().instruments().add(Counter::BytesCopied, (hits * wanted.width) as u64);
    span.record("bytes", (hits * wanted.width) as u64);
    damaged_rows(damaged).map_or(Ok(hits), Err)
}

/// Copies located rows into their part of the buffers, prefetching ahead of the copy.
fn copy_rows(
    state: &State,
    located: Located<'_>,
    mut part: Part<'_, '_>,
    keys: Keys<'_>,
    wanted: &Wanted<'_>,
) -> Result<Copied> {
    let Located { rows, errors: mut damaged } = located;
    let at_fault = |(position, error)| keys.item_error(part.first + position, error);
    if let Some(at) = damaged.iter().position(|(_, error)| !error.is_corrupt()) {
        return Err(at_fault(damaged.swap_remove(at)));
    }
    let mut copier = Copier { options: state.options(), decoder: Decoder::new(), wanted, plans: Vec::new(), last: 0 };
    let plans: Vec<Option<usize>> = rows.iter().map(|row| copier.plan_if_plain(row.as_ref()?)).collect();
    prefault_rows(state, part.queries, &rows, &|row, leaf| copier.reads(row, leaf))?;
    let mut hits = 0;
    for (flag, plan) in part.found.iter_mut().zip(&plans) {
        *flag = plan.is_some();
        hits += usize::from(*flag);
    }
    if hits > 0 {
        // First find the bytes of every row, while the data needed for that are in the processor's caches. Then only
        // copy, prefetching rows while others are copied.
        let mut bytes = Vec::with_capacity(rows.len() * wanted.leaves.len());
        for (number, out) in part.outs.iter_mut().enumerate() {
            copier.plain_leaf(&rows, &plans, number, out, &mut bytes)?;
        }
        for ((leaf, out), bytes) in wanted.leaves.iter().zip(&mut part.outs).zip(bytes.chunks(rows.len().max(1))) {
            copy_each(bytes, leaf.width, out);
        }
    }
    let not_plain = rows.iter().zip(&plans).enumerate().filter(|(_, (_, plan))| plan.is_none());
    let others: Vec<(usize, &Row<'_>)> =
        not_plain.take(rows.len() - hits).filter_map(|(position, (row, _))| Some((position, row.as_ref()?))).collect();
    let mut next = others.iter().skip(rows_ahead(wanted.width));
    for (position, row) in &others {
        next.next().into_iter().for_each(|(_, row)| row.prefetch());
        match copier.copy(row, *position, &mut part.outs) {
            Ok(()) => {
                if let Some(flag) = part.found.get_mut(*position) {
                    *flag = true;
                }
                hits += 1;
            }
            Err(error) if error.is_corrupt() => damaged.push((*position, error)),
            Err(error) => return Err(at_fault((*position, error))),
        }
    }
    damaged.sort_by_key(|(position, _)| *position);
    Ok(Copied { hits, damaged: damaged.into_iter().map(at_fault).collect() })
}

fn get_leaves_into_cached(
    state: &State,
    keys: Keys<'_>,
    wanted: &Wanted<'_>,
    outs: &mut [&mut [u8]],
    found: &mut [bool],
) -> Result<usize> {
    let (mut damaged, mut hits) = (Vec::new(), 0);
    for (position, (value, flag)) in get_batch(state, keys)?.into_iter().zip(found).enumerate() {
        match &value {
            Ok(Some(value)) => {
                let leaves = wanted.leaves_of(value).map_err(|error| keys.item_error(position, error))?;
                for ((leaf, value), out) in wanted.leaves.iter().zip(leaves).zip(&mut *outs) {
                    let copied = place(out, leaf, position).and_then(|place| copy_value(leaf, value, place));
                    copied.map_err(|error| keys.item_error(position, error))?;
                }
                *flag = true;
                hits += 1;
            }
            Ok(None) => {}
            Err(error) if error.is_corrupt() => damaged.push(error.clone()),
            Err(error) => return Err(error.clone()),
        }
    }
    damaged_rows(damaged).map_or(Ok(hits), Err)
}

/// The error for these rows, each an [`Error::Item`]; `None` if there are none.
pub(super) fn damaged_rows(rows: Vec<Error>) -> Option<Error> {
    let items = |error| if let Error::Item(item) = error { Some(*item) } else { None };
    let rows: Vec<ItemError> = rows.into_iter().filter_map(items).collect();
    (!rows.is_empty()).then_some(Error::DamagedRows { rows })
}

/// Copies the bytes of rows, `width` each, prefetching rows while others are copied. Rows without bytes are passed over.
fn copy_each(rows: &[Option<&[u8]>], width: usize, out: &mut [u8]) {
    let (ahead, lines) = (rows_ahead(width), lines_at_start(width));
    let prefetch = |row: &Option<&[u8]>| row.iter().for_each(|bytes| prefetch_lines(bytes, lines));
    rows.iter().take(ahead).for_each(prefetch);
    let mut next = rows.get(ahead..).unwrap_or_default().iter();
    for (row, place) in rows.iter().zip(out.chunks_exact_mut(width.max(1))) {
        next.next().into_iter().for_each(prefetch);
        if let Some(bytes) = row {
            place.copy_from_slice(bytes);
        }
    }
}

/// How many rows ahead of the copy are prefetched: copying a small row takes less time than waiting for the next.
fn rows_ahead(width: usize) -> usize {
    const AHEAD_BYTES: usize = 4096;
    (AHEAD_BYTES / width.max(1)).clamp(1, 16)
}

/// The place of a row in the buffer of a leaf.
fn place<'o>(out: &'o mut [u8], leaf: &WantedLeaf<'_>, position: usize) -> Result<&'o mut [u8]> {
    let start = position * leaf.width;
    // The buffer was checked.
    out.get_mut(start..start + leaf.width).ok_or_else(|| Error::internal(format!("no place for row {position}")))
}

/// Rows of a part that were copied, and the errors of those that are damaged.
struct Copied {
    hits: usize,
    damaged: Vec<Error>,
}

/// Copies the wanted leaves of rows; remembers how they lie in each structure.
struct Copier<'a> {
    options: &'a Options,
    decoder: Decoder,
    wanted: &'a Wanted<'a>,
    plans: Vec<(*const RowSchema, Plan)>,
    /// The plan that was needed last.
    last: usize,
}

impl Copier<'_> {
    /// The number of the plan for rows of `schema`.
    #[inline(always)]
    fn plan(&mut self, schema: &Arc<RowSchema>) -> Result<usize> {
        let address = Arc::as_ptr(schema);
        if self.plans.get(self.last).is_none_or(|(known, _)| *known != address) {
            self.last = match self.plans.iter().position(|(known, _)| *known == address) {
                Some(at) => at,
                None => {
                    self.plans.push((address, Plan::new(self.options, self.wanted, schema)?));
                    self.plans.len() - 1
                }
            };
        }
        Ok(self.last)
    }

    /// The plan for a row that can be copied as it is stored and needs no more checks.
    #[inline(always)]
    fn plan_if_plain(&mut self, row: &Row<'_>) -> Option<usize> {
        // A mismatch is found again when the row is copied.
        let at = self.plan(row.schema()).ok()?;
        let (_, plan) = self.plans.get(at)?;
        (plan.is_plain && plan.is_checked(row, self.options.verify)).then_some(at)
    }

    /// Whether the plan for this row, if there is one, reads this leaf.
    fn reads(&self, row: &Row<'_>, leaf: usize) -> bool {
        let address = Arc::as_ptr(row.schema());
        let plan = self.plans.iter().find(|(known, _)| *known == address);
        plan.is_some_and(|(_, plan)| plan.steps.iter().any(|step| step.leaf() == leaf))
    }

    fn step(&self, plan: usize, leaf: usize) -> Option<Step> {
        self.plans.get(plan)?.1.steps.get(leaf).copied()
    }

    /// Appends the bytes of one leaf of each row to `bytes`; of no bytes if the row has no plan. Booleans, which have no
    /// bytes either, are copied at once.
    fn plain_leaf<'r>(
        &self,
        rows: &'r [Option<Row<'_>>],
        plans: &[Option<usize>],
        number: usize,
        out: &mut [u8],
        bytes: &mut Vec<Option<&'r [u8]>>,
    ) -> Result<()> {
        let Some(leaf) = self.wanted.leaves.get(number) else { return Ok(()) };
        // Most rows have the plan of the row before.
        let mut last = (None, None);
        for (position, (row, plan)) in rows.iter().zip(plans).enumerate() {
            if last.0 != *plan {
                last = (*plan, plan.and_then(|plan| self.step(plan, number)));
            }
            bytes.push(match (row, last.1) {
                (Some(row), Some(Step::Copy { leaf: at, width, offset })) => {
                    Some(fixed_part(row, at, width, offset, leaf.width)?)
                }
                (Some(row), Some(Step::Bit { leaf: at })) => {
                    if let Some(LeafBytes::Bit(flag)) = row.columns().leaf(at, row.row) {
                        place(out, leaf, position)?.fill(u8::from(flag));
                    }
                    None
                }
                _ => None,
            });
        }
        Ok(())
    }

    /// Checks and copies any row.
    fn copy(&mut self, row: &Row<'_>, position: usize, outs: &mut [&mut [u8]]) -> Result<()> {
        let plan = self.plan(row.schema())?;
        self.plans.get(plan).map_or(Ok(()), |(_, plan)| plan.check(row, self.options.verify))?;
        for (number, (leaf, out)) in self.wanted.leaves.iter().zip(outs).enumerate() {
            let place = place(out, leaf, position)?;
            match self.step(plan, number) {
                Some(Step::Copy { leaf: at, width, offset }) => {
                    place.copy_from_slice(fixed_part(row, at, width, offset, leaf.width)?);
                }
                Some(Step::Bit { leaf: at } | Step::Decode { leaf: at }) => {
                    let stored = StoredLeaf::of(row, at)?;
                    let start = leaf.part_of(stored.read_dtype(self.options), &stored.shape)?;
                    stored.copy(self.options, row, &mut self.decoder, start..start + leaf.width, place)?;
                }
                None => return Err(Error::internal("a plan without a step for a leaf")),
            }
        }
        Ok(())
    }
}

/// `len` bytes of a leaf of `width` bytes, from `offset` on.
#[inline(always)]
fn fixed_part<'r>(row: &'r Row<'_>, leaf: usize, width: usize, offset: usize, len: usize) -> Result<&'r [u8]> {
    let bytes = row.fixed_leaf(leaf, width).and_then(|bytes| bytes.get(offset..offset + len));
    bytes.ok_or_else(|| row.corrupt("a leaf lies outside of its column"))
}
