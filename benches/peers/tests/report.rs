//! Ratios pair rounds that were measured in turn, and the table of targets says whether they were met.

use tensorcask_peers::Fallible;
use tensorcask_peers::engine::{EngineId, Order};
use tensorcask_peers::machine::Machine;
use tensorcask_peers::report;
use tensorcask_peers::results::{Measure, Results, Workload};
use tensorcask_peers::settings::Settings;

fn results() -> Fallible<Results> {
    let dir = tempfile::tempdir()?;
    Ok(Results { machine: Machine::here(dir.path())?, settings: Settings::default(), series: Vec::new() })
}

fn workload(row_bytes: usize, measure: Measure) -> Workload {
    Workload { row_bytes, order: Order::Sorted, measure }
}

#[test]
fn a_peer_is_compared_with_the_rounds_beside_it() -> Fallible {
    let mut results = results()?;
    let read = workload(3072, Measure::Read);
    for (peer, theirs, ours) in [(EngineId::Lmdb, 40.0, 10.0), (EngineId::Redb, 40.0, 20.0)] {
        results.push(peer, Some(peer), read, theirs);
        results.push(EngineId::Tensorcask, Some(peer), read, ours);
    }
    let median = |engine| results.ratio(engine, EngineId::Tensorcask, read).map(|ratio| ratio.median);
    assert_eq!(median(EngineId::Lmdb), Some(4.0));
    assert_eq!(median(EngineId::Redb), Some(2.0));
    assert_eq!(results.quartiles(EngineId::Tensorcask, read).map(|all| all.median), Some(15.0));
    let report = report::markdown(&results)?;
    assert!(report.contains("| batched reads in memory, 3072 B | 1000000 | lmdb | 3.4 × | 4.00 × [4.00–4.00] | met |"));
    assert!(report.contains("| redb | 7.4 × | 2.00 × [2.00–2.00] | **not met** |"));
    assert!(!report.contains("| fjall | 10.0 × |"), "what was not measured is no target missed");
    Ok(())
}

#[test]
fn misses_are_compared_with_the_best_store_on_disk() -> Fallible {
    let mut results = results()?;
    let miss = workload(128, Measure::Miss);
    for (peer, theirs) in [(EngineId::Bitcask, 1.0), (EngineId::Sqlite, 90.0), (EngineId::Lmdb, 50.0)] {
        results.push(peer, Some(peer), miss, theirs);
        results.push(EngineId::Tensorcask, Some(peer), miss, 10.0);
    }
    assert!(report::markdown(&results)?.contains("| the best | 3.0 × | lmdb 5.00 × [5.00–5.00] | met |"));
    Ok(())
}
