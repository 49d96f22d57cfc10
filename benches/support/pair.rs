//! The same rows in a store and, one after another, in a file: for a read and its raw control.

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use tensorcask::{Dtype, Options};

use crate::random::Random;

pub(crate) type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const BATCH: usize = 2048;

pub(crate) struct Settings {
    pub rows: usize,
    pub row_bytes: usize,
    pub rounds: usize,
    pub dir: PathBuf,
}

/// Parses the command line; the default is a million rows of 3 KB.
pub(crate) fn settings(folder: &str, rounds: usize) -> Fallible<Settings> {
    let mut settings = Settings { rows: 1_000_000, row_bytes: 3072, rounds, dir: std::env::temp_dir().join(folder) };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--row-bytes" => settings.row_bytes = value()?.parse()?,
            "--rounds" => settings.rounds = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--bench" | "--test" => {}
            other => return Err(format!("{other} is no option: --rows, --row-bytes, --rounds, --dir").into()),
        }
    }
    Ok(settings)
}

/// Puts the rows into the store `bench`, under their numbers, and writes them to `raw.bin`.
pub(crate) fn load(settings: &Settings) -> Fallible {
    let store = Options::new().open(&settings.dir, "bench")?;
    let mut raw = File::create(settings.dir.join("raw.bin"))?;
    let mut random = Random(1);
    let mut buffer = vec![0_u8; BATCH * settings.row_bytes];
    for start in (0..settings.rows).step_by(BATCH) {
        let keys: Vec<u64> = (start as u64..(start + BATCH).min(settings.rows) as u64).collect();
        for word in buffer.chunks_mut(8) {
            word.iter_mut().zip(random.next().to_le_bytes()).for_each(|(byte, random)| *byte = random);
        }
        let bytes = buffer.get(..keys.len() * settings.row_bytes).unwrap_or(&buffer);
        store.put_rows_bytes(&keys, Dtype::U8, &[settings.row_bytes], bytes)?;
        raw.write_all(bytes)?;
    }
    raw.sync_all()?;
    Ok(store.close()?)
}
