//! The sections of the page.

use tensorcask::{Key, SegmentSurvey};

use super::data::Data;
use super::histogram::{linear, logarithmic};
use super::plot::{Bar, Labels, Line, bars, lines, named_bars, steps};
use super::text::{date, escaped, figure, grouped, shortened};
use crate::bench::measure::QUANTILES;
use crate::output::bytes;

/// The most bars that are told apart on a page.
const MOST_BARS: usize = 120;
/// The most names in a list.
const MOST_NAMES: usize = 12;

fn section(id: &str, title: &str, content: &str) -> String {
    format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{content}</section>\n")
}

fn note(text: &str) -> String {
    format!("<p class=\"soft\">{}</p>\n", escaped(text))
}

fn plotted(svg: &str) -> String {
    format!("<figure>{svg}</figure>\n")
}

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", part / whole * 100.0) } else { "none".to_owned() }
}

/// The figures that matter most.
pub(super) fn summary(data: &Data) -> String {
    let stats = &data.stats;
    let active = data.segments.iter().filter(|segment| !segment.sealed).count();
    let dead = match (stats.dead_rows, stats.dead_bytes) {
        (Some(rows), Some(size)) => (bytes(size), format!("dead: {} rows (lower bound)", grouped(rows))),
        _ => ("unknown".to_owned(), "dead: a crash made the number of keys unknown".to_owned()),
    };
    let tiles = [
        (
            stats.keys.map_or("unknown".to_owned(), grouped),
            format!("live keys ({})", stats.key_kind.unwrap_or("no kind yet")),
        ),
        (bytes(stats.segment_bytes), "in segments".to_owned()),
        (bytes(stats.run_bytes), format!("in {} index runs", stats.runs)),
        (
            format!("{}", data.segments.len()),
            format!("segments: {} sealed, {active} active", data.segments.len() - active),
        ),
        (grouped(data.segments.iter().map(|segment| segment.rows).sum()), "rows, tombstones included".to_owned()),
        dead,
        (
            format!("{:.2} ms", data.opened.elapsed.as_secs_f64() * 1e3),
            format!("opening, {} rows indexed", grouped(data.opened.rows_indexed)),
        ),
        (grouped(stats.memtable_keys as u64), format!("keys in memory ({})", bytes(stats.memtable_bytes as u64))),
    ];
    let tiles: String = tiles
        .iter()
        .map(|(value, what)| {
            format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escaped(value), escaped(what))
        })
        .collect();
    format!("<section id=\"summary\">\n<div class=\"tiles\">\n{tiles}</div>\n</section>\n")
}

/// Files that are left out, and damaged rows of the samples.
pub(super) fn damage(data: &Data) -> String {
    let files = &data.opened.quarantined;
    let sampled = data.damaged_rows();
    if files.is_empty() && data.opened.missing.is_empty() && sampled == 0 {
        return section(
            "damage",
            "Damage",
            &note("None was found at opening and in the samples. The command verify reads every byte."),
        );
    }
    let lost = |rows: Option<u64>| rows.map_or("unknown".to_owned(), grouped);
    let quarantined =
        files.iter().map(|file| (file.path.display().to_string(), lost(file.rows_lost), file.why.clone()));
    let missing = data.opened.missing.iter().map(|missing| {
        let segments = if missing.segments > 1 { format!(" and {} more", missing.segments - 1) } else { String::new() };
        (format!("{}{segments}", missing.path.display()), lost(missing.rows), missing.why.clone())
    });
    let rows: String = quarantined
        .chain(missing)
        .map(|(path, rows, why)| {
            format!("<tr><td>{}</td><td>{rows}</td><td class=\"text\">{}</td></tr>\n", escaped(&path), escaped(&why))
        })
        .collect();
    let mut content = format!(
        "<p class=\"bad\">{} files are left out or missing, and {sampled} sampled rows are damaged. <code>tensorcask \
         verify</code> lists the keys to put again.</p>\n",
        files.len() as u64 + data.opened.missing.iter().map(|missing| missing.segments).sum::<u64>(),
    );
    if !rows.is_empty() {
        content += &format!(
            "<div class=\"scroll\"><table>\n<tr><th>file</th><th>rows lost</th><th class=\"text\">why</th></tr>\n\
             {rows}</table></div>\n"
        );
    }
    section("damage", "Damage", &content)
}

/// How the segments that are there now came together.
pub(super) fn growth(data: &Data) -> String {
    let mut segments: Vec<&SegmentSurvey> = data.segments.iter().filter(|segment| segment.rows > 0).collect();
    segments.sort_by(|a, b| a.last_commit_s.total_cmp(&b.last_commit_s));
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else {
        return section("growth", "Size over time", &note("There are no rows."));
    };
    let total: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let (unit, name) = unit_of(total as f64);
    let mut sum = 0;
    // Points at least half a unit of the plot apart, so that stores of many segments have small pages.
    let span = (last.last_commit_s - first.first_commit_s).max(f64::MIN_POSITIVE);
    let mut points = vec![(first.first_commit_s, 0.0)];
    for (position, segment) in segments.iter().enumerate() {
        sum += segment.bytes;
        let point = (segment.last_commit_s, sum as f64 / unit);
        let is_near = points.last().is_some_and(|(time, _)| (point.0 - time) / span < 1.0 / 1300.0);
        match points.last_mut().filter(|_| is_near && position > 0) {
            Some(near) => near.1 = point.1,
            None => points.push(point),
        }
    }
    let labels = Labels { title: "Size over time", x: "newest row of a segment (UTC)", y: name };
    let content = note(
        "Bytes of the segments that are there now, by the commit time of their newest row. Rows that were compacted \
         away are not in it.",
    ) + &plotted(&steps(&points, labels, date));
    section("growth", "Size over time", &content)
}

/// Sizes and live shares of segments.
pub(super) fn segments(data: &Data) -> String {
    if data.segments.is_empty() {
        return section("segments", "Segments and live share", &note("There are no segments."));
    }
    let largest = data.segments.iter().map(|segment| segment.bytes).max().unwrap_or(0);
    let each = data.segments.len().div_ceil(MOST_BARS);
    let (unit, unit_name) = unit_of(largest as f64);
    let live_of = |segment: &SegmentSurvey| live_share(segment).map_or(0.0, |live| live * segment.bytes as f64);
    let drawn: Vec<Bar> = data
        .segments
        .chunks(each)
        .map(|chunk| {
            let mean = |sum: f64| sum / chunk.len() as f64 / unit;
            let live = mean(chunk.iter().map(live_of).sum());
            let all = mean(chunk.iter().map(|segment| segment.bytes as f64).sum());
            let name = |segment: Option<&SegmentSurvey>| {
                let stem = segment.and_then(|segment| segment.path.file_name()).unwrap_or_default();
                stem.to_string_lossy().split('.').next().unwrap_or_default().to_owned()
            };
            let (first, last) = (name(chunk.first()), name(chunk.last()));
            let names = if chunk.len() > 1 { format!("{first} to {last}, mean") } else { first.clone() };
            Bar {
                title: format!("{names}: {} {unit_name}, {} live", figure(all), share(live, all)),
                label: first,
                parts: [live, (all - live).max(0.0)],
            }
        })
        .collect();
    let y = format!("{unit_name} a segment");
    let labels = Labels { title: "Sizes of segments", x: "segment (lane and number)", y: &y };
    let mut content = note(&format!(
        "Strong: live. Weak: overwritten, deleted, or not sampled. Each bar is {}. The live share is estimated from {} \
         sampled rows.",
        if each == 1 { "a segment".to_owned() } else { format!("the mean of {each} segments") },
        grouped(data.segments.iter().map(|segment| segment.sampled).sum())
    )) + &plotted(&bars(&drawn, labels));
    let shares: Vec<f64> = data.segments.iter().filter_map(live_share).collect();
    if !shares.is_empty() {
        let drawn =
            linear(&shares, (0.0, 1.0), 10, |from, to| format!("{:.0}–{:.0}", from * 100.0, to * 100.0), "segments");
        let labels = Labels { title: "Live share", x: "live rows of a segment (%)", y: "segments" };
        content += &plotted(&bars(&drawn, labels));
    }
    section("segments", "Segments and live share", &content)
}

/// The estimated live share of a segment.
fn live_share(segment: &SegmentSurvey) -> Option<f64> {
    (segment.sampled > 0).then(|| segment.sampled_live as f64 / segment.sampled as f64)
}

/// Lengths of keys, or the distribution of integers; frequent prefixes.
pub(super) fn keys(data: &Data) -> String {
    if data.keys.is_empty() {
        return section("keys", "Keys", &note("There are no live keys in the sample."));
    }
    let integers: Vec<f64> = data.keys.iter().filter_map(|key| key.as_u64().map(|key| key as f64)).collect();
    let sampled = note(&format!("{} live keys were sampled.", grouped(data.keys.len() as u64)));
    if !integers.is_empty() {
        let (min, max) =
            integers.iter().fold((f64::INFINITY, 0.0_f64), |(min, max), key| (min.min(*key), max.max(*key)));
        let range = (min, if max > min { max + 1.0 } else { min + 1.0 });
        let drawn = linear(&integers, range, 40, |from, _| figure(from), "keys");
        let labels = Labels { title: "Keys", x: "key (integer)", y: "sampled keys" };
        return section("keys", "Keys", &(sampled + &plotted(&bars(&drawn, labels))));
    }
    let lengths: Vec<f64> = data.keys.iter().map(|key| key_len_bytes(key) as f64).collect();
    let longest = lengths.iter().copied().fold(0.0, f64::max);
    let shortest = lengths.iter().copied().fold(longest, f64::min);
    let drawn = if longest - shortest < 40.0 {
        let bins = (longest - shortest) as usize + 1;
        linear(&lengths, (shortest, longest + 1.0), bins, |from, _| format!("{from:.0}"), "keys")
    } else {
        logarithmic(&lengths, |from, _| bytes(from as u64), "keys")
    };
    let labels = Labels { title: "Lengths of keys", x: "length of a key (bytes)", y: "sampled keys" };
    let mut content = sampled + &plotted(&bars(&drawn, labels));
    let prefixes = most_frequent(data.keys.iter().filter_map(prefix));
    if prefixes.len() > 1 {
        content += &note("The most frequent beginnings of keys, up to the first of / : _ - . or a space:");
        content += &plotted(&named_bars(&prefixes, "Beginnings of keys", "sampled keys"));
    }
    section("keys", "Keys", &content)
}

fn key_len_bytes(key: &Key) -> usize {
    match key {
        Key::Str(text) => text.len(),
        Key::U64(_) => 8,
        Key::Bytes(bytes) => bytes.len(),
    }
}

fn prefix(key: &Key) -> Option<String> {
    let Key::Str(text) = key else { return None };
    let end = text.find(['/', ':', '_', '-', '.', ' ']).map_or(text.len(), |at| at + 1);
    text.get(..end).map(|prefix| shortened(prefix, 80))
}

/// Bars of the most frequent names.
fn most_frequent(names: impl Iterator<Item = String>) -> Vec<Bar> {
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    named(counts.into_iter().collect())
}

/// Bars of named counts: the largest, and one for all others.
fn named(mut counts: Vec<(String, u64)>) -> Vec<Bar> {
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let others = counts.split_off(counts.len().min(MOST_NAMES));
    let rest: u64 = others.iter().map(|(_, count)| count).sum();
    if rest > 0 {
        counts.push((format!("{} others", others.len()), rest));
    }
    let bar = |(name, count): (String, u64)| Bar {
        title: format!("{}: {}", shortened(&name, 400), grouped(count)),
        label: name,
        parts: [count as f64, 0.0],
    };
    counts.into_iter().map(bar).collect()
}

/// Structures and sizes of values.
pub(super) fn values(data: &Data) -> String {
    let values = &data.values;
    if values.sizes.is_empty() {
        return section("values", "Shapes and sizes of values", &note("No value was sampled."));
    }
    let sizes: Vec<f64> = values.sizes.iter().map(|size| *size as f64).collect();
    let total: f64 = sizes.iter().sum();
    let structures = named(values.structures.iter().map(|(name, count)| (name.clone(), *count)).collect());
    let drawn = logarithmic(&sizes, |from, _| bytes(from as u64), "values");
    let labels = Labels { title: "Sizes of values", x: "size of a value (bytes, from … on)", y: "sampled values" };
    let content = note(&format!(
        "{} values were sampled, of {} on average.",
        grouped(sizes.len() as u64),
        bytes((total / sizes.len() as f64) as u64)
    )) + &plotted(&named_bars(&structures, "Structures of values", "sampled values"))
        + &plotted(&bars(&drawn, labels));
    section("values", "Shapes and sizes of values", &content)
}

/// The read test.
pub(super) fn reads(data: &Data) -> String {
    let Some(measured) = &data.measured else {
        return section("reads", "Read test", &note("There was none: the store has no rows, or --seconds was 0."));
    };
    let timings = crate::bench::rows(measured);
    let names: Vec<&str> = QUANTILES.iter().map(|(name, _)| *name).collect();
    let drawn: Vec<Line> = timings
        .iter()
        .skip(1)
        .map(|(name, timing, _)| Line {
            name: (*name).to_owned(),
            points: timing.quantiles_s.iter().enumerate().map(|(at, time)| (at as f64, time * 1e6)).collect(),
        })
        .collect();
    let labels = Labels { title: "Latency of reads", x: "quantile of batches", y: "µs a batch" };
    let rows: String = timings
        .iter()
        .map(|(name, timing, ratio)| {
            format!(
                "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.3}</td><td>{}</td></tr>\n",
                figure(timing.at("p50") * 1e6),
                figure(timing.at("p99") * 1e6),
                figure(timing.at("p99.9") * 1e6),
                grouped(timing.rows_per_s as u64),
                timing.bytes_per_s / 1e9,
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
            )
        })
        .collect();
    let content = note(&format!(
        "{} rows of {} on average ({}), {} keys a batch, by {}. Cache {}. The raw copy is a plain copy of the same rows \
         from where they lie in memory, measured alternately.",
        grouped(measured.keys as u64),
        bytes(measured.row_bytes as u64),
        measured.structure,
        measured.batch,
        measured.call,
        crate::bench::cache(measured)
    )) + &plotted(&lines(&drawn, &names, labels))
        + "<div class=\"scroll\"><table>\n<tr><th>pass</th><th>p50 (µs)</th><th>p99 (µs)</th><th>p99.9 (µs)</th>\
           <th>rows/s</th><th>GB/s</th><th>times raw</th></tr>\n"
        + &rows
        + "</table></div>\n";
    section("reads", "Read test", &content)
}

/// The unit in which `most` bytes are a small number, and its name.
fn unit_of(most: f64) -> (f64, &'static str) {
    let units = [(1.0, "B"), (1024.0, "KiB"), (1024.0 * 1024.0, "MiB"), (1024.0 * 1024.0 * 1024.0, "GiB")];
    units.into_iter().rev().find(|(unit, _)| most >= *unit).unwrap_or((1.0, "B"))
}
