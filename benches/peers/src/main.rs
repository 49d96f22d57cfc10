//! Compares tensorcask with other embedded stores. `--help` explains the options.

use tensorcask_peers::{Fallible, child, parent, settings};

fn main() -> Fallible {
    if let Some(task) = child::task()? {
        return child::serve(&task);
    }
    match settings::parse(std::env::args().skip(1))? {
        Some(settings) => parent::run(&settings),
        None => {
            print!("{}", settings::HELP);
            Ok(())
        }
    }
}
