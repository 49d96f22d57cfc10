//! Model checks: the engine's own code under many schedules of its threads, which `shuttle` chooses.
//!
//! `cargo test -p tensorcask --features model --lib engine::model`. [`crate::sync`] says what is exchanged for that.

mod memtable;
mod queue;
mod store;
mod value_cache;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// The same schedules at each run; others with the environment variable `SHUTTLE_RANDOM_SEED`.
const SEED: u64 = 0x7EA5_0CA5;
/// So many times at the most, in unlikely places, another thread goes on (Burckhardt et al., ASPLOS 2010).
const PREEMPTIONS: usize = 3;

/// Runs `run` under `schedules` schedules that are random at each step, and as many with few preemptions. Fails if one
/// of them panics or comes to a deadlock.
fn check(schedules: usize, run: impl Fn() + Send + Sync + Clone + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new_from_seed(SEED, schedules), config.clone()).run(run.clone());
    Runner::new(PctScheduler::new_from_seed(SEED, PREEMPTIONS, schedules), config).run(run);
}
