//! Percentiles, slopes, and confidence intervals.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::Fallible;
use crate::data::Random;

/// Measured batches that are pooled before resampling. Adjacent batches share the machine's noise, so resampling single
/// batches would give too narrow an interval.
pub(crate) const BLOCK: usize = 100;
const RESAMPLES: usize = 2000;

/// The percentiles of a histogram, in a unit that the caller chooses.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Percentiles {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Percentiles {
    pub(crate) fn of(histogram: &Histogram<u64>, unit: f64) -> Self {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / unit;
        Self {
            count: histogram.len(),
            mean: histogram.mean() / unit,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / unit,
        }
    }

    /// The ratio of the slowest thousandth to the median.
    pub(crate) fn tail(&self) -> f64 {
        self.p999 / self.p50
    }
}

/// A histogram that resizes automatically.
pub(crate) fn histogram() -> Fallible<Histogram<u64>> {
    Ok(Histogram::new(3)?)
}

/// Mean logarithms of blocks of adjacent values.
pub(crate) fn block_means(values: &[f64]) -> Vec<f64> {
    values.chunks(BLOCK).map(|block| mean(&block.iter().map(|value| value.ln()).collect::<Vec<_>>())).collect()
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The median, the minimum and the maximum of `values`.
pub(crate) fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = |position: usize| sorted.get(position).copied().unwrap_or(f64::NAN);
    [at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1))]
}

/// A least-squares slope and its 95 % interval.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Slope {
    pub slope: f64,
    pub low: f64,
    pub high: f64,
}

fn least_squares(points: &[(f64, f64)]) -> f64 {
    let x = mean(&points.iter().map(|point| point.0).collect::<Vec<_>>());
    let y = mean(&points.iter().map(|point| point.1).collect::<Vec<_>>());
    let across: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let along: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    across / along
}

/// The slope of log(time) against log(keys), over steps with the same number of batches. A step is a number of keys and
/// its [`block_means`]. For the interval, the blocks of each step are resampled. `None` for fewer than two steps.
pub(crate) fn slope(steps: &[(u64, &[f64])]) -> Option<Slope> {
    if steps.len() < 2 || steps.iter().any(|(_, blocks)| blocks.is_empty()) {
        return None;
    }
    let fitted: Vec<_> = steps.iter().map(|(keys, blocks)| ((*keys as f64).ln(), mean(blocks))).collect();
    let mut random = Random(11);
    let mut slopes: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<_> = steps
                .iter()
                .map(|(keys, blocks)| {
                    let draw = |random: &mut Random| blocks.get(random.below(blocks.len() as u64) as usize).copied();
                    let sum: f64 = (0..blocks.len()).filter_map(|_| draw(&mut random)).sum();
                    ((*keys as f64).ln(), sum / blocks.len() as f64)
                })
                .collect();
            least_squares(&drawn)
        })
        .collect();
    slopes.sort_unstable_by(f64::total_cmp);
    let at = |quantile: f64| slopes.get((RESAMPLES as f64 * quantile) as usize).copied().unwrap_or(f64::NAN);
    Some(Slope { slope: least_squares(&fitted), low: at(0.025), high: at(0.975) })
}
