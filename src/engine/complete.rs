//! Completes a batch with single flight: computes missing keys, or waits for the threads and processes that compute
//! them.
//!
//! A call first computes the keys that nobody else computes, releases them, and only then waits for the others. So
//! threads and processes that ask for overlapping keys in any order do not wait for each other in a cycle.

use std::ops::ControlFlow;

use crate::engine::flight::claims::{Claimed, Flight};
use crate::engine::flight::waits::{Waited, wait_for_claims};
use crate::engine::leases::{Leases, Patience, Taken};
use crate::key::Key;

/// A batch of which some positions are missing. Each missing key is passed once, with its first position.
pub trait Work {
    /// The error of the calls below.
    type Error;
    /// Why a computation ends the whole call.
    type Stop;

    /// The keys at the positions `at`.
    fn keys(&self, at: &[usize]) -> Vec<Key>;
    /// Reads the rows at `at` that were written meanwhile; returns the positions that are still missing.
    ///
    /// # Errors
    /// Those of reading.
    fn look_again(&mut self, at: &[usize]) -> Result<Vec<usize>, Self::Error>;
    /// Computes the rows at `at`, and puts them.
    ///
    /// # Errors
    /// Those of computing and putting. Threads that wait for these keys then compute them.
    fn compute(&mut self, at: &[usize]) -> Result<ControlFlow<Self::Stop>, Self::Error>;
    /// Makes the rows that were put visible to other processes.
    ///
    /// # Errors
    /// Those of writing.
    fn publish(&mut self) -> Result<(), Self::Error>;
    /// The error of a computation that needs its own result.
    fn recursion(&self) -> Self::Error;
}

/// The positions for which `chosen` is true, and the others.
fn divide(at: &[usize], chosen: &[bool]) -> (Vec<usize>, Vec<usize>) {
    let (yes, no): (Vec<_>, Vec<_>) = at.iter().zip(chosen).partition(|(_, chosen)| **chosen);
    let positions = |pairs: Vec<(&usize, &bool)>| pairs.into_iter().map(|(at, _)| *at).collect();
    (positions(yes), positions(no))
}

/// Completes the positions `open`. `landings` is [`Flight::landings`] from before they were looked up.
///
/// # Errors
/// Those of `work`. The rows that were computed before are kept.
pub fn complete<W: Work>(
    flight: &Flight,
    mut leases: Option<&Leases>,
    work: &mut W,
    mut open: Vec<usize>,
    mut landings: u64,
) -> Result<Option<W::Stop>, W::Error> {
    // Claims that are not waited for, as their threads wait for this one.
    let mut passed_by = Vec::new();
    let mut patience = Patience::new();
    let mut timed_out = false;
    while !open.is_empty() {
        let Claimed { claim, got, others } = flight.claim(&work.keys(&open), &passed_by);
        let (mut mine, mut rest) = divide(&open, &got);
        let taken = leases.map(|leases| leases.take(&work.keys(&mine)));
        let mut is_shared = timed_out;
        if let Some(Taken { got, is_shared: shared, .. }) = &taken {
            let (leased, elsewhere) = divide(&mine, got);
            (mine, is_shared) = (leased, *shared);
            rest.extend(elsewhere);
        }
        if !mine.is_empty() && (is_shared || flight.landings() != landings) {
            mine = work.look_again(&mine)?;
        }
        if !mine.is_empty() {
            let done = work.compute(&mine)?;
            // A process that came meanwhile may wait for the leases.
            if is_shared || leases.is_some_and(Leases::is_shared) {
                work.publish()?;
            }
            if let ControlFlow::Break(stop) = done {
                return Ok(Some(stop));
            }
        }
        let refused = taken.map(|taken| taken.refused).unwrap_or_default();
        drop(claim);
        if !others.is_empty() {
            match wait_for_claims(&others) {
                Waited::Over => {}
                Waited::Circle(claims) => passed_by.extend(claims),
                Waited::Itself => return Err(work.recursion()),
            }
        } else if !refused.is_empty() && !leases.is_some_and(|leases| leases.wait(&refused, &mut patience)) {
            (leases, timed_out) = (None, true);
        }
        if rest.is_empty() {
            break;
        }
        landings = flight.landings();
        rest.sort_unstable();
        open = work.look_again(&rest)?;
    }
    Ok(None)
}
