//! Histograms, as bars.

use super::plot::Bar;
use super::text::grouped;

/// The most bars of a histogram of powers of two.
const MOST_POWERS: i32 = 64;

/// Counts numbers in `bins` bins of equal width. `name` names a bin by its ends.
pub(super) fn linear(
    numbers: &[f64],
    (min, max): (f64, f64),
    bins: usize,
    name: impl Fn(f64, f64) -> String,
    what: &str,
) -> Vec<Bar> {
    let mut counts = vec![0_u64; bins.max(1)];
    let last = counts.len() - 1;
    let width = (max - min) / counts.len() as f64;
    for number in numbers {
        let at = (((number - min) / width).max(0.0) as usize).min(last);
        counts.iter_mut().skip(at).take(1).for_each(|count| *count += 1);
    }
    let edge = |at: usize| min + at as f64 * width;
    let bar = |(at, count): (usize, u64)| bar(name(edge(at), edge(at + 1)), count, what);
    counts.into_iter().enumerate().map(bar).collect()
}

/// Counts numbers in bins from a power of two to the next, from the smallest to the largest that occurs.
pub(super) fn logarithmic(numbers: &[f64], name: impl Fn(f64, f64) -> String, what: &str) -> Vec<Bar> {
    let power = |number: f64| if number < 1.0 { 0 } else { (number.log2().floor() as i32 + 1).min(MOST_POWERS) };
    let powers: Vec<i32> = numbers.iter().map(|number| power(*number)).collect();
    let (Some(first), Some(last)) = (powers.iter().min(), powers.iter().max()) else { return Vec::new() };
    let edge = |power: i32| if power == 0 { 0.0 } else { 2f64.powi(power - 1) };
    (*first..=*last)
        .map(|bin| {
            let count = powers.iter().filter(|power| **power == bin).count() as u64;
            bar(name(edge(bin), edge(bin + 1)), count, what)
        })
        .collect()
}

fn bar(label: String, count: u64, what: &str) -> Bar {
    Bar { title: format!("{label}: {} {what}", grouped(count)), label, parts: [count as f64, 0.0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(bars: &[Bar]) -> Vec<(String, u64)> {
        bars.iter().map(|bar| (bar.label.clone(), bar.parts[0] as u64)).collect()
    }

    #[test]
    fn every_number_is_in_one_bin() {
        let name = |from: f64, _: f64| format!("{from}");
        let found = counts(&linear(&[0.0, 0.5, 0.99, 1.0], (0.0, 1.0), 2, name, "x"));
        assert_eq!(found, [("0".to_owned(), 1), ("0.5".to_owned(), 3)]);
        let found = counts(&logarithmic(&[0.0, 1.0, 3.0, 4.0, 7.0], name, "x"));
        assert_eq!(found, [("0".to_owned(), 1), ("1".to_owned(), 1), ("2".to_owned(), 1), ("4".to_owned(), 2)]);
        assert!(logarithmic(&[], name, "x").is_empty());
    }
}
