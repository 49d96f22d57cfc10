//! The `tensorcask` command line tool: inspects and verifies a store, imports into it and exports from it.
//!
//! Exit codes: 0 success; 1 the key does not exist; 2 damage was found; 3 the input or the arguments are wrong; 4 the
//! store or the disk failed.

use std::process::ExitCode;

/// Handles SIGXFSZ: a write beyond the process's file size limit (`ulimit -f`) then fails with an error that is
/// reported and cleaned up after, instead of a signal that ends the process.
fn catch_file_size_limit() {
    use std::sync::{Arc, atomic::AtomicBool};
    // If the handler cannot be registered, the signal ends the process.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

fn main() -> ExitCode {
    catch_file_size_limit();
    ExitCode::from(tensorcask_cli::run(std::env::args_os()))
}
