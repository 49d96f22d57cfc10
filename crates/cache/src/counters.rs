//! Counts of what the cache did, and the time that it saved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a wrapped module, since it was wrapped or since the last epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Samples that were found.
    pub hits: u64,
    /// Samples that were computed.
    pub misses: u64,
    /// Samples that occurred again in their batch, and were not computed again.
    pub duplicates: u64,
    /// Samples that another thread or process was computing, and whose result was waited for.
    pub waited: u64,
    /// Samples that were computed and not kept, because a byte cap was reached, another rank writes, the folder is read
    /// only, or the store failed.
    pub not_kept: u64,
    /// Damaged rows that were computed again.
    pub damaged: u64,
    /// Hits that were recomputed and compared.
    pub verified: u64,
    /// Calls that bypassed the cache, which was disabled, or whose module was in training mode.
    pub bypassed: u64,
    /// Bytes of tensors that came from the cache.
    pub read_bytes: u64,
    /// Bytes of tensors that were put.
    pub put_bytes: u64,
    /// Seconds spent computing.
    pub compute_s: f64,
    /// Seconds of computation that the hits saved: their number times the mean time of a sample, measured in this
    /// process or an earlier one. 0 if no time is known.
    pub saved_s: f64,
}

/// The rows that a wrapped module holds on its memory device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldRows {
    /// Rows.
    pub rows: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Counts {
    /// The share of samples that were found, from 0 to 1; 1 if there were no samples.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more than 52 bits")]
    pub fn hit_rate(&self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 1.0 } else { self.hits as f64 / all as f64 }
    }
}

impl std::fmt::Display for Counts {
    #[expect(clippy::cast_precision_loss, reason = "megabytes for people")]
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{} hits, {} misses ({:.1} % hits), {:.1} MiB read, {:.1} MiB put, {:.2} s computed, {:.2} s saved",
            self.hits,
            self.misses,
            100.0 * self.hit_rate(),
            mib(self.read_bytes),
            mib(self.put_bytes),
            self.compute_s,
            self.saved_s
        )?;
        let rare = [
            (self.duplicates, "duplicates"),
            (self.waited, "waited for"),
            (self.not_kept, "not kept"),
            (self.damaged, "damaged"),
            (self.verified, "verified"),
            (self.bypassed, "bypassed"),
        ];
        rare.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, name)| write!(f, ", {count} {name}"))
    }
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// The counters, shared by threads.
        #[derive(Debug, Default)]
        pub struct Counters { $(pub $name: AtomicU64,)* pub compute_ns: AtomicU64, pub saved_ns: AtomicU64 }

        impl Counters {
            /// Adds the counts of `other`.
            pub fn take_in(&self, other: &Self) {
                $(self.$name.fetch_add(other.$name.load(Ordering::Relaxed), Ordering::Relaxed);)*
                self.compute_ns.fetch_add(other.compute_ns.load(Ordering::Relaxed), Ordering::Relaxed);
                self.saved_ns.fetch_add(other.saved_ns.load(Ordering::Relaxed), Ordering::Relaxed);
            }

            /// The counts.
            pub fn counts(&self) -> Counts {
                let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let seconds = |counter: &AtomicU64| Duration::from_nanos(get(counter)).as_secs_f64();
                Counts { $($name: get(&self.$name),)* compute_s: seconds(&self.compute_ns), saved_s: seconds(&self.saved_ns) }
            }
        }

        impl Counts {
            /// The difference from `earlier`.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self {
                    $($name: self.$name.saturating_sub(earlier.$name),)*
                    compute_s: (self.compute_s - earlier.compute_s).max(0.0),
                    saved_s: (self.saved_s - earlier.saved_s).max(0.0),
                }
            }
        }
    };
}
counters! { hits, misses, duplicates, waited, not_kept, damaged, verified, bypassed, read_bytes, put_bytes }

pub fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Counters {
    /// Counts hits, each of which saved `mean_s` seconds of computation.
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    pub fn hit(&self, samples: usize, len_bytes: usize, mean_s: f64) {
        add(&self.hits, samples);
        add(&self.read_bytes, len_bytes);
        let saved = Duration::try_from_secs_f64(samples as f64 * mean_s).unwrap_or_default();
        self.saved_ns.fetch_add(u64::try_from(saved.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
