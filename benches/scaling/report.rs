//! Writes tables, raw numbers and charts.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::data::{Control, memory_bytes};
use crate::kernel::kernel;
use crate::load::PUT;
use crate::measure::{Rest, Series};
use crate::merging::SMALL_PUT;
use crate::statistics::{BLOCK, Percentiles, Slope, slope};
use crate::wide::WIDE_BYTES;
use crate::{Fallible, GATHER, Settings, Step};

/// The machine and the settings of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    file_system: String,
    commit: String,
    control: &'static str,
}

/// The growth of times with the number of keys.
#[derive(Debug, Serialize)]
struct Slopes {
    hit: Option<Slope>,
    miss: Option<Slope>,
    raw: Option<Slope>,
    contains: Option<Slope>,
    contains_alone: Option<Slope>,
    absent_alone: Option<Slope>,
    wide: Option<Slope>,
    wide_raw: Option<Slope>,
    wide_over_raw: Option<Slope>,
    hit_over_raw: Option<Slope>,
    miss_over_raw: Option<Slope>,
}

impl Machine {
    pub(crate) fn of(settings: &Settings, control: &Control) -> Fallible<Self> {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Ok(Self {
            cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: memory_bytes()?,
            kernel: kernel(),
            file_system: file_system(&settings.dir).unwrap_or_else(|| "an unknown file system".into()),
            commit: commit().unwrap_or_else(|| "unknown".into()),
            control: control.place(),
        })
    }
}

/// The type of the file system that holds `path`: that of the mount point with the longest matching path.
fn file_system(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let holding = mounts.filter(|(point, _)| path.starts_with(point));
    // Of several mounts at one point, the last one is visible.
    holding.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind.to_owned())
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    let changed = !git(&["status", "--porcelain", "--untracked-files=no", "--", "src", "benches"])?.is_empty();
    Some(format!("{}{}", git(&["rev-parse", "--short", "HEAD"])?, if changed { " with changes" } else { "" }))
}

impl Slopes {
    fn of(steps: &[Step]) -> Self {
        let of = |series: fn(&Step) -> &Series| {
            let blocks: Vec<_> = steps.iter().map(|step| (step.keys, series(step).blocks.as_slice())).collect();
            slope(&blocks)
        };
        // Batches of one turn share the machine's noise, which cancels out in the ratio.
        let over = |series: fn(&Step) -> &Series, raw: fn(&Step) -> &Series| {
            let ratios: Vec<(u64, Vec<f64>)> = steps
                .iter()
                .map(|step| {
                    let pairs = series(step).blocks.iter().zip(&raw(step).blocks);
                    (step.keys, pairs.map(|(ours, raw)| ours - raw).collect())
                })
                .collect();
            let blocks: Vec<_> = ratios.iter().map(|(keys, blocks)| (*keys, blocks.as_slice())).collect();
            slope(&blocks)
        };
        Self {
            hit: of(|step| &step.rest.hit),
            miss: of(|step| &step.rest.miss),
            raw: of(|step| &step.rest.raw),
            contains: of(|step| &step.rest.contains),
            contains_alone: of(|step| &step.rest.contains_alone),
            absent_alone: of(|step| &step.rest.absent_alone),
            wide: of(|step| &step.rest.wide),
            wide_raw: of(|step| &step.rest.wide_raw),
            wide_over_raw: over(|step| &step.rest.wide, |step| &step.rest.wide_raw),
            hit_over_raw: over(|step| &step.rest.hit, |step| &step.rest.raw),
            miss_over_raw: over(|step| &step.rest.miss, |step| &step.rest.raw),
        }
    }
}

/// A number of keys in a form that fits a table.
fn keys(count: u64) -> String {
    let exponent = (count.max(1) as f64).log10().floor();
    let mantissa = (count as f64 / 10_f64.powf(exponent) * 100.0).round() / 100.0;
    format!("{mantissa}e{exponent}")
}

/// Keys per second over the last stretch of a load, including the flush.
fn last_throughput(step: &Step) -> f64 {
    step.load.stretches.last().map_or(f64::NAN, crate::load::Stretch::flushed_per_second)
}

/// The summary line of a step.
pub(crate) fn line(step: &Step) -> String {
    let rest = &step.rest;
    let (hit, miss, raw) = (rest.hit.ns.p50, rest.miss.ns.p50, rest.raw.ns.p50);
    format!(
        "{:>6} keys: hit {hit:.1} ns, miss {miss:.1} ns, raw {raw:.1} ns a key ({:.2} ×, {:.2} ×); contains {:.1} ns, alone \
         {:.1} ns; wide {:.2} × raw; {:.2} M keys/s put and flushed; open {:.2} ms; {:.1} B a key on disk",
        keys(step.keys),
        hit / raw,
        miss / raw,
        rest.contains.ns.p50,
        rest.contains_alone.ns.p50,
        rest.wide.ns.p50 / rest.wide_raw.ns.p50,
        last_throughput(step) / 1e6,
        rest.open_ms[0],
        rest.disk_bytes as f64 / step.keys as f64,
    )
}

/// Writes all reports to `settings.out`.
pub(crate) fn write(settings: &Settings, machine: &Machine, steps: &[Step]) -> Fallible {
    std::fs::create_dir_all(&settings.out)?;
    let slopes = Slopes::of(steps);
    std::fs::write(settings.out.join("scaling.md"), markdown(settings, machine, steps, &slopes)?)?;
    #[derive(Serialize)]
    struct Raw<'a> {
        machine: &'a Machine,
        row_bytes: usize,
        wide_rows: u64,
        batch: usize,
        batches: usize,
        slopes: &'a Slopes,
        steps: &'a [Step],
    }
    let (row_bytes, batches) = (settings.row_bytes, settings.batches);
    let wide_rows = settings.wide_rows;
    let raw = Raw { machine, row_bytes, wide_rows, batch: GATHER, batches, slopes: &slopes, steps };
    let mut json = rounded(serde_json::to_value(&raw)?).to_string();
    json.push('\n');
    std::fs::write(settings.out.join("scaling.json"), json)?;
    std::fs::write(settings.out.join("scaling.csv"), csv(steps)?)?;
    crate::plot::write(&settings.out, steps)
}

/// Rounds fractional numbers to six digits, which is the precision of the measurements.
fn rounded(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) if number.is_f64() => {
            let digits = number.as_f64().map(|number| format!("{number:.5e}"));
            digits.and_then(|digits| digits.parse::<f64>().ok()).map_or(Value::Null, Value::from)
        }
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Object(items) => items.into_iter().map(|(name, item)| (name, rounded(item))).collect(),
        other => other,
    }
}

fn csv(steps: &[Step]) -> Fallible<String> {
    let mut text = String::from("keys,what,statistic,value\n");
    for step in steps {
        let (at, rest, load, merging) = (step.keys, &step.rest, &step.load, &step.merging);
        for (what, of) in [
            ("hit_ns", &rest.hit.ns),
            ("miss_ns", &rest.miss.ns),
            ("hit_core_ns", &rest.hit.core_ns),
            ("miss_core_ns", &rest.miss.core_ns),
            ("raw_core_ns", &rest.raw.core_ns),
            ("raw_ns", &rest.raw.ns),
            ("contains_ns", &rest.contains.ns),
            ("contains_alone_ns", &rest.contains_alone.ns),
            ("absent_alone_ns", &rest.absent_alone.ns),
            ("wide_ns", &rest.wide.ns),
            ("wide_raw_ns", &rest.wide_raw.ns),
            ("put_ms", &load.put_ms),
            ("put_in_merges_ms", &load.put_ms_in_merges),
            ("merging_put_us", &merging.put_us),
            ("merging_put_between_us", &merging.put_us_between),
            ("merging_get_us", &merging.get_us),
            ("merging_put_core_us", &merging.put_core_us),
            ("merging_get_core_us", &merging.get_core_us),
            ("merging_get_between_us", &merging.get_us_between),
        ] {
            let statistics = [("p50", of.p50), ("p99", of.p99), ("p99.9", of.p999), ("max", of.max), ("mean", of.mean)];
            for (statistic, value) in statistics {
                writeln!(text, "{at},{what},{statistic},{value:.4}")?;
            }
            writeln!(text, "{at},{what},count,{}", of.count)?;
        }
        for (statistic, value) in ["median", "lowest", "highest"].into_iter().zip(rest.open_ms) {
            writeln!(text, "{at},open_ms,{statistic},{value:.4}")?;
        }
        let memory = rest.memory;
        for (what, value) in [
            ("disk_bytes", rest.disk_bytes),
            ("resident_runs_percent", (rest.resident_runs * 100.0) as u64),
            ("resident_segments_percent", (rest.resident_segments * 100.0) as u64),
            ("run_bytes", rest.run_bytes),
            ("anonymous_bytes_opened", memory.opened_anonymous),
            ("anonymous_bytes_read", memory.read_anonymous),
            ("file_bytes_read", memory.read_file),
            ("anonymous_bytes_loading", load.most_anonymous_bytes),
        ] {
            writeln!(text, "{at},{what},value,{value}")?;
        }
        for stretch in &load.stretches {
            writeln!(text, "{},put_keys_per_second,stretch,{:.0}", stretch.keys, stretch.puts_per_second())?;
            writeln!(text, "{},flushed_keys_per_second,stretch,{:.0}", stretch.keys, stretch.flushed_per_second())?;
        }
    }
    Ok(text)
}

fn markdown(settings: &Settings, machine: &Machine, steps: &[Step], slopes: &Slopes) -> Fallible<String> {
    let mut text = String::new();
    let (most, row_bytes) = (keys(steps.last().map_or(0, |step| step.keys)), settings.row_bytes);
    writeln!(text, "# How costs grow with the number of keys\n")?;
    writeln!(
        text,
        "Written by `cargo bench --bench scaling -- --max-keys {} --row-bytes {row_bytes}`, up to {most} keys, at commit {}. \
         {}, {} cores, {:.0} GiB of memory, Linux {}, {}. Keys are `u64`, not in sequence; rows are {row_bytes} B and a \
         function of their key, and every row read was compared. The raw control, measured in turn with the store, \
         copies rows by known numbers out of {}, and prefetches the next rows while it copies one. Options are the defaults.\n",
        keys(settings.max_keys),
        machine.commit,
        machine.cpu,
        machine.cores,
        machine.memory_bytes as f64 / (1_u64 << 30) as f64,
        machine.kernel,
        machine.file_system,
        machine.control,
    )?;
    reads(&mut text, settings, steps)?;
    growth(&mut text, settings, slopes)?;
    loading(&mut text, steps)?;
    merging(&mut text, steps)?;
    at_rest(&mut text, settings, steps)?;
    Ok(text)
}

fn reads(text: &mut String, settings: &Settings, steps: &[Step]) -> Fallible {
    let batches = settings.batches;
    writeln!(text, "## Reads\n")?;
    writeln!(
        text,
        "Times are nanoseconds a key of `get_batch_into` with {GATHER} random keys, in memory, over {batches} batches of each \
         kind, measured in turn. `Reader::preload` had read the store into memory before, and the files of the \
         controls were read again in the same way, so all of it lies in pages of 2 MiB where the system supports \
         them. Of a store larger than half of the memory, only the index and the wide rows were preloaded; where less \
         than all was resident, hits wait for the disk.\n\n\
         - *Contains* is `contains_batch` of keys that exist: it searches the index and compares keys, but reads no \
         rows. *Contains alone* is the same, batch after batch, with nothing in between that uses the caches; *absent \
         alone* is the same for keys that do not exist.\n\
         - *Wide* is `get_batch_into` of {GATHER} random rows of {WIDE_BYTES} B. The same {} rows are in the store at every \
         size, put before all others, so that only the index grows. *Wide raw* is their gather out of a memory map of \
         a plain file.\n\
         - *Resident* is the share of the pages of index runs, and of segments, that were in the page cache before. A \
         read of rows in memory touches neither the index block nor the row checksums of a segment.\n\
         - *Tenths* are the lowest and the highest median of the tenths of a series. *Faults* are page faults that \
         waited for the disk during the series. *Preempted* is how often another program got the core. Preemption is \
         in the tails and the maxima (a batch that takes longer is hit more often), but not in *p99.9 on the core*, \
         the processor time of the reading thread.\n\n![latency](scaling-latency.svg)\n\n![wide rows](scaling-wide.svg)\n",
        settings.wide_rows
    )?;
    writeln!(
        text,
        "| keys | runs | resident | | p50 | p99 | p99.9 | max | p99.9 on the core | tenths | p50 / raw | faults | preempted |"
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for step in steps {
        let rest = &step.rest;
        for (name, series, raw) in [
            ("hit", &rest.hit, Some(&rest.raw)),
            ("miss", &rest.miss, Some(&rest.raw)),
            ("raw", &rest.raw, None),
            ("contains", &rest.contains, None),
            ("contains alone", &rest.contains_alone, None),
            ("absent alone", &rest.absent_alone, None),
            ("wide", &rest.wide, Some(&rest.wide_raw)),
            ("wide raw", &rest.wide_raw, None),
        ] {
            let (Percentiles { p50, p99, p999, max, .. }, [low, high]) = (series.ns, series.medians);
            let first = name == "hit";
            writeln!(
                text,
                "| {} | {} | {} | {name} | {p50:.1} | {p99:.1} | {p999:.1} | {max:.0} | {:.1} | {low:.1} – {high:.1} | {} | {} | {} |",
                if first { keys(step.keys) } else { String::new() },
                if first { rest.runs.to_string() } else { String::new() },
                if first { resident(rest) } else { String::new() },
                series.core_ns.p999,
                raw.map_or_else(String::new, |raw| format!("{:.2} ×", p50 / raw.ns.p50)),
                if first { rest.major_faults.to_string() } else { String::new() },
                if first { rest.preempted.to_string() } else { String::new() },
            )?;
        }
    }
    Ok(())
}

fn resident(rest: &Rest) -> String {
    format!("{:.2} %, {:.1} %", rest.resident_runs * 100.0, rest.resident_segments * 100.0)
}

fn growth(text: &mut String, settings: &Settings, slopes: &Slopes) -> Fallible {
    writeln!(text, "\n## Is it O(1)?\n")?;
    writeln!(
        text,
        "Least-squares slope of log(time a key) against log(keys); 0 is O(1), 1 is linear. The 95 % interval is a \
         bootstrap over blocks of {BLOCK} of the {} batches of each size. It covers the noise of this run, but not \
         the possibility that the law is not a straight line. The raw control has no index: its slope comes from \
         caches and page tables, and the slope of the ratio is what the store adds.\n",
        settings.batches
    )?;
    writeln!(text, "| | slope | 95 % interval | time for ten times the keys |\n| --- | --- | --- | --- |")?;
    for (name, slope) in [
        ("hit", slopes.hit),
        ("miss", slopes.miss),
        ("raw", slopes.raw),
        ("hit / raw", slopes.hit_over_raw),
        ("miss / raw", slopes.miss_over_raw),
        ("contains", slopes.contains),
        ("contains alone", slopes.contains_alone),
        ("absent alone", slopes.absent_alone),
        ("wide", slopes.wide),
        ("wide raw", slopes.wide_raw),
        ("wide / raw", slopes.wide_over_raw),
    ] {
        let Some(Slope { slope, low, high }) = slope else { continue };
        writeln!(text, "| {name} | {slope:.3} | {low:.3} – {high:.3} | × {:.2} |", 10_f64.powf(slope))?;
    }
    Ok(())
}

fn loading(text: &mut String, steps: &[Step]) -> Fallible {
    writeln!(text, "\n## Loading\n")?;
    writeln!(
        text,
        "`put_rows` of {PUT} rows, in stretches that end with a `flush` (`fdatasync`); making the rows is not \
         counted. *Throughput* is that of the last stretch before the size was reached. Put times and merges cover \
         the whole load since the previous size; *longest, s* is the longest time during which a merge was running. \
         *Close* seals and merges the index, to few runs; *to one run* is `merge_index` afterwards, as one would call \
         it before many reads.\n\n![throughput](scaling-throughput.svg)\n"
    )?;
    writeln!(
        text,
        "| keys | throughput, keys/s | its flush, ms | of the whole load, keys/s | put p50, ms | p99.9, ms | longest, ms | merges | longest, s | most \
         keys in memory | most rows waiting | close, s | to one run, s |"
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for step in steps {
        let load = &step.load;
        writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.0} | {:.2} | {:.1} | {:.0} | {} | {:.2} | {} | {} | {:.2} | {:.2} |",
            keys(step.keys),
            last_throughput(step),
            load.stretches.last().map_or(f64::NAN, |of| of.flush_seconds * 1e3),
            load.keys_per_second(),
            load.put_ms.p50,
            load.put_ms.p999,
            load.put_ms.max,
            load.merges,
            load.longest_merge_seconds,
            load.most_memtable_keys,
            load.most_waiting_rows,
            load.close_seconds,
            load.one_run_seconds,
        )?;
    }
    Ok(())
}

fn merging(text: &mut String, steps: &[Step]) -> Fallible {
    writeln!(text, "\n## While the index is merged\n")?;
    writeln!(
        text,
        "A put of {SMALL_PUT} rows and a batch of {GATHER} random gets alternate on one thread, while the store's own \
         thread merges. `memtable_keys` is an eighth of the keys (1,048,576 at most), so that merges follow one \
         another. Small stores are made again until there are enough calls, since they soon outgrow their size. Times \
         are microseconds a call; *between* are the calls with no merge running, *on the core* is processor time \
         during merges.\n"
    )?;
    writeln!(
        text,
        "| keys | merges | longest, s | | calls | p50 | p99.9 | max | p99.9 / p50 | p99.9 on the core | p50 between | p99.9 between |"
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for step in steps {
        let of = &step.merging;
        if of.merges == 0 {
            writeln!(text, "| {} | no merge came to its end meanwhile |", keys(step.keys))?;
            continue;
        }
        for (name, during, core, between) in [
            ("put", of.put_us, of.put_core_us, of.put_us_between),
            ("get", of.get_us, of.get_core_us, of.get_us_between),
        ] {
            let first = name == "put";
            let blank = |text: String| if first { text } else { String::new() };
            writeln!(
                text,
                "| {} | {} | {} | {name} | {} | {:.0} | {:.0} | {:.0} | {:.1} × | {:.0} | {:.0} | {:.0} |",
                blank(keys(step.keys)),
                blank(of.merges.to_string()),
                blank(format!("{:.2}", of.longest_merge_seconds)),
                during.count,
                during.p50,
                during.p999,
                during.max,
                during.tail(),
                core.p999,
                between.p50,
                between.p999,
            )?;
        }
    }
    Ok(())
}

fn at_rest(text: &mut String, settings: &Settings, steps: &[Step]) -> Fallible {
    writeln!(text, "\n## Opening, memory, disk\n")?;
    writeln!(
        text,
        "*Open* is measured after a clean close, in the same process: median of nine (lowest – highest). Memory is \
         that of a separate process that opens a reader and reads every row with two threads. *Disk* and *index runs* \
         are per key and leave out the values of the wide rows. *Over the rows* is disk less the bytes of the rows; \
         it includes the 8 B of the key.\n\n![opening](scaling-open.svg)\n\n![space](scaling-space.svg)\n"
    )?;
    writeln!(
        text,
        "| keys | segments | open, ms | first read of all, ns a key | RssAnon opened, B a key | RssAnon all read, B a key | \
         RssFile all read, B a key | RssAnon loading, highest | disk, B a key | over the rows, B a key | index runs of it |"
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for step in steps {
        let (rest, count) = (&step.rest, (step.keys + settings.wide_rows) as f64);
        let [median, low, high] = rest.open_ms;
        let wide = settings.wide_rows as f64 * WIDE_BYTES as f64;
        let (disk, rows) = (rest.disk_bytes as f64 - wide, step.keys as f64 * settings.row_bytes as f64);
        writeln!(
            text,
            "| {} | {} | {median:.2} ({low:.2} – {high:.2}) | {:.0} | {:.2} | {:.2} | {:.1} | {:.0} MiB | {:.1} | {:.1} | {:.2} |",
            keys(step.keys),
            rest.segments,
            rest.first_read_ns,
            rest.memory.opened_anonymous as f64 / count,
            rest.memory.read_anonymous as f64 / count,
            rest.memory.read_file as f64 / count,
            step.load.most_anonymous_bytes as f64 / f64::from(1 << 20),
            disk / count,
            (disk - rows) / count,
            rest.run_bytes as f64 / count,
        )?;
    }
    Ok(())
}
