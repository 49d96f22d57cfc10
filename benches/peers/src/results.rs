//! What was measured, and how it is summed up.

use serde::{Deserialize, Serialize};

use crate::engine::{EngineId, Order};
use crate::machine::Machine;
use crate::settings::Settings;

/// What a series measures. Times are nanoseconds a row, of opening nanoseconds, of space bytes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Batches of random keys that are there.
    Read,
    /// Batches of random keys that are not.
    Miss,
    /// Loading, each batch written to the operating system.
    LoadBuffered,
    /// The same up to the end of `close`: durable, and background work done.
    LoadClosed,
    /// Loading, each batch durable.
    LoadDurable,
    /// Opening, and reading one row.
    Open,
    /// Space on disk over the bytes of the rows.
    Disk,
    /// Anonymous memory of the reading process.
    Memory,
}

impl Measure {
    /// All, as reports list them.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Miss,
        Self::LoadBuffered,
        Self::LoadClosed,
        Self::LoadDurable,
        Self::Open,
        Self::Disk,
        Self::Memory,
    ];

    /// A heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Read => "batched reads in memory",
            Self::Miss => "misses",
            Self::LoadBuffered => "load, buffered",
            Self::LoadClosed => "load, buffered, to the end of close",
            Self::LoadDurable => "load, each batch durable",
            Self::Open => "open to the first row",
            Self::Disk => "disk",
            Self::Memory => "anonymous memory",
        }
    }

    /// The short form, of files and columns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Miss => "miss",
            Self::LoadBuffered => "load-buffered",
            Self::LoadClosed => "load-closed",
            Self::LoadDurable => "load-durable",
            Self::Open => "open",
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }

    /// Whether loads are what is measured, which have sizes of their own.
    #[must_use]
    pub fn is_load(self) -> bool {
        matches!(self, Self::LoadBuffered | Self::LoadClosed | Self::LoadDurable)
    }

    /// The unit, and what samples are divided by to be of it.
    #[must_use]
    pub fn unit(self) -> (&'static str, f64) {
        match self {
            Self::Open => ("ms", 1e6),
            Self::Disk | Self::Memory => ("B a row", 1.0),
            _ => ("ns a row", 1.0),
        }
    }
}

/// What was measured, of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Bytes of a row.
    pub row_bytes: usize,
    /// The order of the load.
    pub order: Order,
    /// What was measured.
    pub measure: Measure,
}

/// The samples of one engine in one workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// The engine.
    pub engine: EngineId,
    /// The workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// The peer that was measured in turn with this engine; `None` if all engines took part in the rounds.
    pub beside: Option<EngineId>,
    /// One a round; the same position is the same round for all engines beside the same peer.
    pub samples: Vec<f64>,
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Where it ran.
    pub machine: Machine,
    /// What it was asked.
    pub settings: Settings,
    /// What it found.
    pub series: Vec<Series>,
}

/// The middle and both quartiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles {
    /// A quarter lies below.
    pub low: f64,
    /// Half lies below.
    pub median: f64,
    /// Three quarters lie below.
    pub high: f64,
}

impl Quartiles {
    /// Of some samples; `None` of none.
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
        // Fractions of a picosecond mean nothing, and would be most of the file.
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

    /// How many times as much `engine` takes as `base`, round by round.
    #[must_use]
    pub fn ratio(&self, engine: EngineId, base: EngineId, workload: Workload) -> Option<Quartiles> {
        self.pairs((engine, workload), (base, workload))
    }

    /// How many times as much `engine` takes where keys were loaded shuffled as where they were loaded in order, round
    /// by round.
    #[must_use]
    pub fn shuffled_over_sorted(&self, engine: EngineId, row_bytes: usize, measure: Measure) -> Option<Quartiles> {
        let side = |order| (engine, Workload { row_bytes, order, measure });
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
