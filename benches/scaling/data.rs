//! Keys, rows, the raw control, and figures that the system reports on this process and the disk.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use memmap2::{Mmap, MmapMut};

use crate::Fallible;

pub(crate) use crate::random::{GOLDEN, Random, mix};
pub(crate) use crate::raw::gather as raw_gather;
pub(crate) use crate::system::{folder_bytes, resident_bytes};

/// Writes the row of `key`.
pub(crate) fn write_row(key: u64, row: &mut [u8]) {
    for (word, part) in (1_u64..).zip(row.chunks_mut(8)) {
        let value = mix(key ^ word.wrapping_mul(GOLDEN)).to_le_bytes();
        part.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
    }
}

/// The keys of `counters`, and their rows.
pub(crate) fn make_keys_and_rows(counters: Range<u64>, row_bytes: usize, keys: &mut Vec<u64>, rows: &mut Vec<u8>) {
    keys.clear();
    keys.extend(counters.map(mix));
    rows.resize(keys.len() * row_bytes, 0);
    keys.iter().zip(rows.chunks_exact_mut(row_bytes)).for_each(|(key, row)| write_row(*key, row));
}

/// Fails unless every row is the row of its key.
pub(crate) fn check_rows(keys: &[u64], rows: &[u8], row_bytes: usize, scratch: &mut Vec<u8>) -> Fallible {
    scratch.resize(row_bytes, 0);
    for (key, row) in keys.iter().zip(rows.chunks_exact(row_bytes)) {
        write_row(*key, scratch);
        if row != scratch.as_slice() {
            return Err(format!("key {key:016x} has another row than was put").into());
        }
    }
    Ok(())
}

/// Rows in the order of their counters in plain memory: the cost of a lookup by row number.
pub(crate) struct Control {
    memory: Memory,
    path: PathBuf,
    rows: u64,
    row_bytes: usize,
}

enum Memory {
    File(Option<Mmap>),
    Anonymous(MmapMut),
}

impl Control {
    /// A control that will hold `most_rows`. It is in a file if the disk has space for it and the store.
    pub(crate) fn new(dir: &Path, most_rows: u64, row_bytes: usize) -> Fallible<Self> {
        let needed = most_rows * row_bytes as u64;
        // A key, checksums, the index, and a second index run during a merge.
        let store = most_rows * (row_bytes as u64 + 40);
        let free = free_bytes(dir)?;
        if free < store {
            return Err(format!("{most_rows} keys need about {store} bytes of disk, and {free} are free").into());
        }
        let memory = if free > store + needed + (store + needed) / 16 {
            Memory::File(None)
        } else {
            Memory::Anonymous(MmapMut::map_anon(usize::try_from(needed)?)?)
        };
        Ok(Self { memory, path: dir.join("control.bin"), rows: 0, row_bytes })
    }

    /// Where the rows are.
    pub(crate) fn place(&self) -> &'static str {
        match self.memory {
            Memory::File(_) => "a memory map of a plain file",
            Memory::Anonymous(_) => "an anonymous array",
        }
    }

    /// Grows the control to `rows`, and touches all of its pages.
    pub(crate) fn grow(&mut self, rows: u64) -> Fallible {
        const CHUNK: u64 = 1 << 16;
        let row_bytes = self.row_bytes;
        let (mut keys, mut made) = (Vec::new(), Vec::new());
        let starts = (self.rows..rows).step_by(CHUNK as usize);
        match &mut self.memory {
            Memory::File(map) => {
                *map = None;
                let mut file = BufWriter::new(File::options().create(true).append(true).open(&self.path)?);
                for start in starts {
                    make_keys_and_rows(start..rows.min(start + CHUNK), row_bytes, &mut keys, &mut made);
                    file.write_all(&made)?;
                }
                let file = file.into_inner()?;
                // Written back now, so that it does not disturb the next measurement.
                file.sync_data()?;
                *map = Some(crate::large::map(&self.path)?);
            }
            Memory::Anonymous(memory) => {
                for start in starts {
                    make_keys_and_rows(start..rows.min(start + CHUNK), row_bytes, &mut keys, &mut made);
                    let at = start as usize * row_bytes;
                    memory.get_mut(at..at + made.len()).ok_or("the array is too short")?.copy_from_slice(&made);
                }
            }
        }
        self.rows = rows;
        self.touch()
    }

    /// Touches every page.
    pub(crate) fn touch(&self) -> Fallible {
        let touched: u64 = self.bytes()?.iter().step_by(4096).map(|byte| u64::from(*byte)).sum();
        std::hint::black_box(touched);
        Ok(())
    }

    /// All rows.
    pub(crate) fn bytes(&self) -> Fallible<&[u8]> {
        let all: &[u8] = match &self.memory {
            Memory::File(map) => map.as_ref().ok_or("the control was not written")?,
            Memory::Anonymous(memory) => memory,
        };
        Ok(all.get(..self.rows as usize * self.row_bytes).ok_or("the control is too short")?)
    }
}

/// The machine's memory in bytes.
pub(crate) fn memory_bytes() -> Fallible<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).ok_or("no MemTotal in /proc/meminfo")?;
    let kilobytes: u64 = line.split_whitespace().next().ok_or("a number is missing")?.parse()?;
    Ok(kilobytes * 1024)
}

/// Free bytes on the file system of `path`.
pub(crate) fn free_bytes(path: &Path) -> Fallible<u64> {
    let file_system = rustix::fs::statvfs(path)?;
    Ok(file_system.f_bavail * file_system.f_frsize)
}

/// The number of page faults of this process so far that waited for the disk.
pub(crate) fn major_faults() -> Fallible<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, after_name) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    Ok(after_name.split_whitespace().nth(9).ok_or("/proc/self/stat is too short")?.parse()?)
}

/// The time of a call in nanoseconds: by the clock, and the part in which this thread had the core. On a shared
/// machine, other programs cause the tail of the first.
#[derive(Clone, Copy)]
pub(crate) struct Elapsed {
    pub wall: u64,
    pub core: u64,
}

/// Calls `work` and measures its time.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Elapsed) {
    let core = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    let (core_begin, begin) = (core(), Instant::now());
    let done = work();
    let wall = begin.elapsed().as_nanos() as u64;
    (done, Elapsed { wall, core: core() - core_begin })
}

/// How often the kernel preempted this thread.
pub(crate) fn preempted() -> Fallible<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    Ok(line.ok_or("no context switches in /proc/thread-self/status")?.trim().parse()?)
}
