//! What a report is about: sizes, segments, and samples of bounded size.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tensorcask::{Key, OpenReport, Reader, SegmentSurvey, Stats};

use crate::bench::measure::{Measured, Settings, measure};
use crate::bench::sample::len_bytes;
use crate::failure::Failure;
use crate::output::Output;
use crate::store::ReadArguments;
use crate::structure::structure;

/// How many values are looked at, and for how long at most.
const VALUES: usize = 1024;
const VALUES_TIME: Duration = Duration::from_secs(5);

/// Everything on the page.
#[derive(Debug)]
pub(super) struct Data {
    pub store: String,
    /// When the report was made, in seconds since 1970.
    pub now_s: f64,
    pub stats: Stats,
    pub opened: OpenReport,
    pub segments: Vec<SegmentSurvey>,
    /// Live keys of a sample.
    pub keys: Vec<Key>,
    pub values: Values,
    /// `None` if the store has no rows, or no test was wanted.
    pub measured: Option<Measured>,
}

/// A sample of values.
#[derive(Debug, Default)]
pub(super) struct Values {
    /// How many values have each structure.
    pub structures: BTreeMap<String, u64>,
    /// The size of each value, in bytes.
    pub sizes: Vec<u64>,
    /// Rows that could not be read.
    pub damaged: u64,
}

/// Gathers what the report of a store shows. Time and memory are bounded, whatever the size of the store, except for
/// opening and for a list of its segments.
pub(super) fn gather(
    arguments: &ReadArguments,
    (sample, seconds): (u64, f64),
    output: &Output,
) -> Result<Data, Failure> {
    let reader = crate::store::reader(arguments, output)?;
    let survey = reader.survey(sample, 1)?;
    let values = look_at_values(&reader, &survey.keys)?;
    let (stats, opened) = (reader.stats()?, reader.open_report().clone());
    let measured = if seconds > 0.0 {
        let settings = Settings { seconds, batch: 256, sample: 65_536, cold: false };
        measure(reader, arguments, &settings)?
    } else {
        None
    };
    let store = arguments.store.canonicalize().unwrap_or_else(|_| arguments.store.clone());
    Ok(Data {
        store: store.to_string_lossy().into_owned(),
        now_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        stats,
        opened,
        segments: survey.segments,
        keys: survey.keys,
        values,
        measured,
    })
}

/// Structures and sizes of some of the keys' values.
fn look_at_values(reader: &Reader, keys: &[Key]) -> Result<Values, Failure> {
    let begun = Instant::now();
    let mut values = Values::default();
    for key in keys.iter().step_by(keys.len().div_ceil(VALUES).max(1)) {
        match reader.get(key) {
            Ok(Some(value)) => {
                *values.structures.entry(structure(&value)).or_default() += 1;
                values.sizes.push(len_bytes(&value));
            }
            // Deleted since.
            Ok(None) => {}
            Err(error) if matches!(error.cause(), tensorcask::Error::Corrupt { .. }) => values.damaged += 1,
            Err(error) => return Err(error.into()),
        }
        if begun.elapsed() > VALUES_TIME {
            break;
        }
    }
    Ok(values)
}

impl Data {
    /// Damaged rows among those that were sampled.
    pub(super) fn damaged_rows(&self) -> u64 {
        let of_segments: u64 = self.segments.iter().map(|segment| segment.sampled_damaged).sum();
        of_segments + self.values.damaged + self.measured.as_ref().map_or(0, |measured| measured.damaged as u64)
    }

    /// Whether files are left out or sampled rows are damaged.
    pub(super) fn is_damaged(&self) -> bool {
        !self.opened.quarantined.is_empty() || !self.opened.missing.is_empty() || self.damaged_rows() > 0
    }
}
