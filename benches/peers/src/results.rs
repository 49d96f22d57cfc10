//! The results of a run, and their summary.

use serde::{Deserialize, Serialize};

use crate::engine::{EngineId, KeyForm, Order};
use crate::machine::Machine;
use crate::settings::Settings;

/// The quantity that a series measures. Times are nanoseconds per row, for opening nanoseconds; space is bytes per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Batches of random present keys.
    Read,
    /// Batches of random absent keys.
    Miss,
    /// Loading; each batch is written to the operating system.
    LoadBuffered,
    /// The same up to the end of `close`: everything is durable, and background work is done.
    LoadClosed,
    /// Loading; each batch is durable.
    LoadDurable,
    /// The same up to the end of `close`.
    DurableClosed,
    /// The 99th percentile over the median of the time of a durable batch.
    Stall,
    /// Bytes written per byte of rows in a buffered load, up to the end of `close`.
    Written,
    /// Opening, and reading one row.
    Open,
    /// Space on disk, divided by the bytes of the rows.
    Disk,
    /// Anonymous memory of the reading process.
    Memory,
}

impl Measure {
    /// All measures, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::Read,
        Self::Miss,
        Self::LoadBuffered,
        Self::LoadClosed,
        Self::LoadDurable,
        Self::DurableClosed,
        Self::Stall,
        Self::Written,
        Self::Open,
        Self::Disk,
        Self::Memory,
    ];

    /// The heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Read => "batched reads in memory",
            Self::Miss => "misses",
            Self::LoadBuffered => "load, buffered",
            Self::LoadClosed => "load, buffered, to the end of close",
            Self::LoadDurable => "load, each batch durable",
            Self::DurableClosed => "load, each batch durable, to the end of close",
            Self::Stall => "slow durable batches",
            Self::Written => "bytes written",
            Self::Open => "open to the first row",
            Self::Disk => "disk",
            Self::Memory => "anonymous memory",
        }
    }

    /// The short name in files and columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Miss => "miss",
            Self::LoadBuffered => "load-buffered",
            Self::LoadClosed => "load-closed",
            Self::LoadDurable => "load-durable",
            Self::DurableClosed => "durable-closed",
            Self::Stall => "stall",
            Self::Written => "written",
            Self::Open => "open",
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }

    /// Whether it measures loads, whose stores have another size.
    #[must_use]
    pub fn is_load(self) -> bool {
        !matches!(self, Self::Read | Self::Miss | Self::Open | Self::Disk | Self::Memory)
    }

    /// The unit, and the divisor that converts samples to it.
    #[must_use]
    pub fn unit(self) -> (&'static str, f64) {
        match self {
            Self::Open => ("ms", 1e6),
            Self::Disk | Self::Memory => ("B a row", 1.0),
            Self::Stall => ("p99 over p50", 1.0),
            Self::Written => ("per byte of rows", 1.0),
            _ => ("ns a row", 1.0),
        }
    }
}

/// A measure, and the conditions of its measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Bytes per row.
    pub row_bytes: usize,
    /// The type of the keys.
    #[serde(default)]
    pub keys: KeyForm,
    /// The order of the load.
    pub order: Order,
    /// The measure.
    pub measure: Measure,
}

impl Workload {
    /// The rows and keys, for headings.
    #[must_use]
    pub fn rows(row_bytes: usize, keys: KeyForm) -> String {
        match keys {
            KeyForm::Number => format!("{row_bytes} B"),
            KeyForm::Text => format!("{row_bytes} B, string keys"),
        }
    }
}

/// The samples of one engine in one workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// The engine.
    pub engine: EngineId,
    /// The workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// The peer that was measured in turn with this engine; `None` if all engines took turns.
    pub beside: Option<EngineId>,
    /// One sample per round. Equal positions are the same round for all engines that were measured with the same peer.
    pub samples: Vec<f64>,
}

/// The results of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// The machine.
    pub machine: Machine,
    /// The settings.
    pub settings: Settings,
    /// The samples.
    pub series: Vec<Series>,
}

/// The median and both quartiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles {
    /// The lower quartile.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The upper quartile.
    pub high: f64,
}

impl Quartiles {
    /// The quartiles of samples; `None` if there are none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| -> Option<f64> {
            let place = share * sorted.len().checked_sub(1)? as f64;
            let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
            Some(below + (above - below) * place.fract())
        };
        Some(Self { low: at(0.25)?, median: at(0.5)?, high: at(0.75)? })
    }
}

impl Results {
    /// Adds a sample.
    pub fn push(&mut self, engine: EngineId, beside: Option<EngineId>, workload: Workload, sample: f64) {
        // Fractions of a picosecond are noise, and would be most of the file.
        let sample = (sample * 1000.0).round() / 1000.0;
        let key = (engine, beside, workload);
        let series = self.series.iter_mut().find(|series| (series.engine, series.beside, series.workload) == key);
        match series {
            Some(series) => series.samples.push(sample),
            None => self.series.push(Series { engine, workload, beside, samples: vec![sample] }),
        }
    }

    /// Quartiles of all samples of an engine in a workload.
    #[must_use]
    pub fn quartiles(&self, engine: EngineId, workload: Workload) -> Option<Quartiles> {
        let samples: Vec<f64> = self.of(engine, workload).flat_map(|series| series.samples.iter().copied()).collect();
        Quartiles::of(&samples)
    }

    /// The ratio of `engine` to `base`, round by round.
    #[must_use]
    pub fn ratio(&self, engine: EngineId, base: EngineId, workload: Workload) -> Option<Quartiles> {
        self.pairs((engine, workload), (base, workload))
    }

    /// The ratio of `engine` on keys that were loaded shuffled to keys that were loaded in order, round by round.
    #[must_use]
    pub fn shuffled_over_sorted(&self, engine: EngineId, row_bytes: usize, measure: Measure) -> Option<Quartiles> {
        let side = |order| (engine, Workload { row_bytes, keys: KeyForm::Number, order, measure });
        self.pairs(side(Order::Shuffled), side(Order::Sorted))
    }

    fn of(&self, engine: EngineId, workload: Workload) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.engine == engine && series.workload == workload)
    }

    fn pairs(&self, upper: (EngineId, Workload), lower: (EngineId, Workload)) -> Option<Quartiles> {
        let mut ratios = Vec::new();
        for series in self.of(upper.0, upper.1) {
            let beside = self.of(lower.0, lower.1).filter(|other| other.beside == series.beside);
            let lower = beside.flat_map(|other| &other.samples);
            ratios.extend(series.samples.iter().zip(lower).map(|(upper, lower)| upper / lower));
        }
        Quartiles::of(&ratios)
    }
}
