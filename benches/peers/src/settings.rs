//! The settings of a run, from the command line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Fallible;
use crate::engine::{EngineId, KeyForm};

/// The output of `--help`.
pub const HELP: &str = "\
Measures tensorcask beside LMDB, redb, fjall, RocksDB, SQLite, a Bitcask as one writes it by hand, and the machine's
limits, and writes reports/peers.md, peers.json and peers-*.svg.

  cargo run --release --manifest-path benches/peers/Cargo.toml -- [OPTIONS]

Each engine runs in a process of its own. Loads are timed in turn. Then each peer is read beside tensorcask and the
limit: the three are open at once and are asked for one slice of measurements after another, so that a noisy machine is
noisy for all of them. Every row that is read is checked. A full run takes some hours, 14 GB of disk at a time, and 16 GB
of memory.

  --short            a tenth of the rows, 1 load, 10 rounds: a few minutes; other options may follow
  --keys N           rows of the stores that are read (default: 10000000 of 128 B, 1000000 of 3072 B)
  --load-keys N      rows of the loads that are timed (default: 10000000 of 128 B, 200000 of 3072 B, at most --keys)
  --row-bytes N,N    sizes of rows, multiples of 8 (default: 128,3072)
  --engines A,B      which engines (default: all); raw and tensorcask are what the others are compared with
  --loads-only       no reads; other options may follow
  --loads N          loads of each workload and engine (default: 3)
  --rounds N         slices of reads and of misses of each engine (default: 40)
  --batches N        batches of 256 keys in a slice (default: 32)
  --dir DIR          where stores are kept while they are measured (default: tensorcask-peers in the temporary folder);
                     is removed afterwards
  --out DIR          where reports go (default: the project's reports/)
  --from FILE        measures nothing, and writes the report of an earlier run's peers.json anew
  --help             this

Without RocksDB, which builds for many minutes and needs libclang: --no-default-features, before the two dashes.
";

/// The options of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Whether to use a tenth of the rows.
    pub short: bool,
    /// The number of rows of stores that are read, if not the default for their size.
    pub keys: Option<usize>,
    /// The number of rows of timed loads, if not the default for their size.
    pub load_keys: Option<usize>,
    /// Sizes of rows.
    pub row_bytes: Vec<usize>,
    /// Engines, in the order of tables.
    pub engines: Vec<EngineId>,
    /// The number of loads for each workload and engine.
    pub loads: usize,
    /// Whether only loads are measured.
    #[serde(default)]
    pub loads_only: bool,
    /// The number of slices of reads.
    pub rounds: usize,
    /// Batches per slice.
    pub batches: usize,
    /// The folder of the stores.
    #[serde(skip)]
    pub dir: PathBuf,
    /// The folder of the reports.
    #[serde(skip)]
    pub out: PathBuf,
    /// An earlier run to report instead of measuring.
    #[serde(skip)]
    pub from: Option<PathBuf>,
}

impl Settings {
    /// The number of rows of stores that are read.
    #[must_use]
    pub fn rows(&self, row_bytes: usize) -> usize {
        self.keys.unwrap_or(self.share(if row_bytes < 1024 { 10_000_000 } else { 1_000_000 }))
    }

    /// The number of rows of timed loads.
    #[must_use]
    pub fn load_rows(&self, row_bytes: usize) -> usize {
        let default = self.share(if row_bytes < 1024 { 10_000_000 } else { 200_000 });
        self.load_keys.unwrap_or(default.min(self.rows(row_bytes)))
    }

    /// Sizes of rows with types of keys. String keys are measured with rows of less than 1 KiB.
    #[must_use]
    pub fn sizes(&self) -> Vec<(usize, KeyForm)> {
        let texts = self.row_bytes.iter().filter(|bytes| **bytes < 1024).map(|bytes| (*bytes, KeyForm::Text));
        self.row_bytes.iter().map(|bytes| (*bytes, KeyForm::Number)).chain(texts).collect()
    }

    fn share(&self, rows: usize) -> usize {
        if self.short { rows / 10 } else { rows }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            short: false,
            keys: None,
            load_keys: None,
            row_bytes: vec![128, 3072],
            engines: EngineId::built(),
            loads: 3,
            loads_only: false,
            rounds: 40,
            batches: 32,
            dir: std::env::temp_dir().join("tensorcask-peers"),
            out: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../reports")),
            from: None,
        }
    }
}

/// Parses the command line; `None` if it asks for [`HELP`].
///
/// # Errors
/// For an unknown option, or an invalid value.
pub fn parse(mut arguments: impl Iterator<Item = String>) -> Fallible<Option<Settings>> {
    let mut settings = Settings::default();
    while let Some(argument) = arguments.next() {
        if argument == "--help" || argument == "-h" {
            return Ok(None);
        }
        if argument == "--short" {
            (settings.short, settings.loads, settings.rounds) = (true, 1, 10);
            continue;
        }
        if argument == "--loads-only" {
            settings.loads_only = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value; --help lists options"))?;
        match argument.as_str() {
            "--keys" => settings.keys = Some(value.parse()?),
            "--load-keys" => settings.load_keys = Some(value.parse()?),
            "--row-bytes" => settings.row_bytes = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--engines" => settings.engines = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--loads" => settings.loads = value.parse()?,
            "--rounds" => settings.rounds = value.parse()?,
            "--batches" => settings.batches = value.parse()?,
            "--dir" => settings.dir = value.into(),
            "--out" => settings.out = value.into(),
            "--from" => settings.from = Some(value.into()),
            other => return Err(format!("{other} is no option; --help lists them").into()),
        }
    }
    if settings.row_bytes.iter().any(|bytes| *bytes == 0 || bytes % 8 != 0) {
        return Err("rows are multiples of 8 bytes".into());
    }
    let counts = [settings.loads, settings.rounds, settings.batches];
    let mut keys = [settings.keys, settings.load_keys].into_iter().flatten();
    if counts.contains(&0) || keys.any(|keys| keys == 0 || u32::try_from(keys).is_err()) {
        let names = "--keys, --load-keys, --loads, --rounds and --batches";
        return Err(format!("{names} are at least 1, and keys at most 4294967295").into());
    }
    Ok(Some(settings))
}
