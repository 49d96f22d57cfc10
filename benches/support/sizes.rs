//! The sizes of the stores of the criterion benches.

/// The sizes that this run measures: those up to `TENSORCASK_BENCH_ROWS`, or `default`; always the smallest.
pub(crate) fn sizes(sizes: &[u64], default: u64) -> Vec<u64> {
    let most = std::env::var("TENSORCASK_BENCH_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(default);
    let smallest = sizes.iter().min().copied().unwrap_or(0);
    sizes.iter().copied().filter(|size| *size <= most.max(smallest)).collect()
}
