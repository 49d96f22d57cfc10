//! Model checks: run the engine's own code under many schedules of its threads, which `shuttle` chooses.
//!
//! `cargo test -p tensorcask --features model --lib engine::model`. [`crate::sync`] describes the types that they
//! replace.

mod flight;
mod memtable;
mod queue;
mod store;
mod value_cache;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Every run checks the same schedules; set the environment variable `SHUTTLE_RANDOM_SEED` for others.
const SEED: u64 = 0x7EA5_0CA5;
/// Most preemptions of a schedule, at unlikely points (Burckhardt et al., ASPLOS 2010).
const PREEMPTIONS: usize = 3;

/// Runs `run` under `schedules` schedules that are random at each step, and as many with few preemptions. Fails if one
/// of them panics or deadlocks.
fn check(schedules: usize, run: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new_from_seed(SEED, schedules), config.clone()).run(run.clone());
    Runner::new(PctScheduler::new_from_seed(SEED, PREEMPTIONS, schedules), config).run(run);
}
