//! Figures, which are printed immediately and written as Markdown.

use std::fmt::Write as _;
use std::path::Path;

use hdrhistogram::Histogram;

use crate::{Fallible, Settings};

/// The figures for rows of one size.
pub(crate) struct Table {
    row_bytes: usize,
    rows: Vec<[String; 3]>,
}

impl Table {
    pub(crate) fn new(row_bytes: usize) -> Self {
        Self { row_bytes, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, what: &str, figure: String, bar: &str) {
        println!("  {what:<62} {figure:>30}   {bar}");
        self.rows.push([what.to_owned(), figure, bar.to_owned()]);
    }
}

/// The lower quartile, the median and the upper quartile.
pub(crate) fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [2, 1, 3].map(|quarter| sorted.get(sorted.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

/// Formats the quartiles of a figure over all rounds.
pub(crate) fn spread(values: &[f64], unit: &str) -> String {
    let [middle, low, high] = quartiles(values);
    let digits = if middle < 10.0 { 2 } else { 0 };
    format!("{middle:.digits$} {unit} [{low:.digits$}–{high:.digits$}]")
}

pub(crate) fn percentiles(histogram: &Histogram<u64>) -> String {
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    format!("{:.1} / {:.1} / {:.1} µs", at(0.5), at(0.99), at(0.999))
}

pub(crate) fn write_report(path: &Path, settings: &Settings, tables: &[Table]) -> Fallible {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |name| name.trim_start_matches(['\t', ' ', ':']));
    let cores = std::thread::available_parallelism()?;
    let mut text = String::new();
    writeln!(text, "# The engine's promises, measured\n")?;
    writeln!(
        text,
        "Written by `cargo bench --bench engine -- --rows {} --report reports/engine.md`; {cpu}, {cores} cores, Linux {}.\n\n\
         Ratios are to a control measured in turn in the same run: the *raw gather* copies rows by known numbers out \
         of a memory map of a plain file, and prefetches the next row while it copies one. Each contender reads rows \
         of its own, drawn at random, in {} rounds; a figure is the median of the rounds, with quartiles in brackets. \
         *First pass* uses a reader and a map that were just opened, and reads no row twice; *in memory* is measured \
         after that.",
        settings.rows,
        crate::kernel::kernel(),
        settings.rounds,
    )?;
    for table in tables {
        writeln!(text, "\n## {} rows of {} B\n", settings.rows, table.row_bytes)?;
        writeln!(text, "| what | measured | bar |\n| --- | --- | --- |")?;
        for [what, figure, bar] in &table.rows {
            writeln!(text, "| {} | {} | {} |", what.trim(), figure.trim(), bar)?;
        }
    }
    std::fs::write(path, text)?;
    Ok(())
}
