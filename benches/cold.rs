//! Reads rows from disk: `get_batch_into` of random keys after the page cache was dropped. Controls are measured in
//! turn with it.
//!
//! `cargo bench --bench cold -- [--rows 1000000] [--row-bytes 3072] [--rounds 15] [--dir DIR]`
//!
//! The folder has to be on a disk, as nothing can be dropped in a `tmpfs`, and needs space for the rows twice. The
//! share of the files in memory is measured before each sample, and printed.
#![expect(unsafe_code, reason = "controls read a memory map, and pages are dropped by address")]
#![cfg_attr(
    target_os = "linux",
    expect(clippy::indexing_slicing, reason = "a control that is wrong about its own rows should stop")
)]

#[cfg(target_os = "linux")]
#[path = "support/pair.rs"]
mod pair;
#[cfg(target_os = "linux")]
#[path = "support/random.rs"]
mod random;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("only on Linux");
}

#[cfg(target_os = "linux")]
fn main() -> pair::Fallible {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::{File, OpenOptions};
    use std::hint::black_box;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use io_uring::{IoUring, opcode, types};
    use memmap2::{Advice, Mmap};
    use tensorcask::{Dtype, Reader};

    use super::pair::{Fallible, Settings, load, settings};
    use super::random::Random;

    const GATHER: usize = 1024;
    const QUEUE_DEPTH: usize = 256;
    const PAGE: usize = 4096;

    fn draw(random: &mut Random, rows: usize) -> Vec<usize> {
        (0..GATHER).map(|_| random.below(rows as u64) as usize).collect()
    }

    /// The mapped files: those of the store, and the raw file.
    struct Files {
        paths: Vec<PathBuf>,
    }

    impl Files {
        fn below(dir: &Path) -> Fallible<Self> {
            let mut paths = Vec::new();
            let mut folders = vec![dir.to_path_buf()];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder)? {
                    let path = entry?.path();
                    if path.is_dir() { folders.push(path) } else { paths.push(path) }
                }
            }
            Ok(Self { paths })
        }

        /// This process's maps of the files: address and length.
        fn maps(&self) -> Fallible<Vec<(usize, usize)>> {
            let text = std::fs::read_to_string("/proc/self/maps")?;
            let mapped = text.lines().filter(|line| {
                line.split_whitespace().nth(5).is_some_and(|path| self.paths.iter().any(|one| one == Path::new(path)))
            });
            mapped
                .map(|line| {
                    let (range, _) = line.split_once(' ').ok_or("a line of /proc/self/maps")?;
                    let (start, end) = range.split_once('-').ok_or("a range of /proc/self/maps")?;
                    let (start, end) = (usize::from_str_radix(start, 16)?, usize::from_str_radix(end, 16)?);
                    Ok((start, end - start))
                })
                .collect()
        }

        fn drop_from_memory(&self) -> Fallible {
            for (start, len) in self.maps()? {
                // SAFETY: the maps are read-only maps of files, so dropped pages are read again on access.
                unsafe { libc::madvise(start as *mut _, len, libc::MADV_DONTNEED) };
            }
            for path in &self.paths {
                rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
            }
            Ok(())
        }

        /// The share of the mapped pages that are in memory, in percent.
        fn in_memory_percent(&self) -> Fallible<f64> {
            let (mut resident, mut pages) = (0, 0);
            for (start, len) in self.maps()? {
                let mut flags = vec![0_u8; len.div_ceil(PAGE)];
                // SAFETY: mincore writes one byte per page to `flags`, which has as many.
                if unsafe { libc::mincore(start as *mut _, len, flags.as_mut_ptr()) } != 0 {
                    return Err(std::io::Error::last_os_error().into());
                }
                resident += flags.iter().filter(|flag| **flag & 1 == 1).count();
                pages += flags.len();
            }
            Ok(resident as f64 * 100.0 / pages.max(1) as f64)
        }
    }

    /// An aligned and prefaulted buffer for O_DIRECT.
    fn direct_buffer(len: usize) -> Fallible<memmap2::MmapMut> {
        let mut buffer = memmap2::MmapMut::map_anon(len)?;
        buffer.fill(1);
        Ok(buffer)
    }

    /// Reads the rows through io_uring, [`QUEUE_DEPTH`] at a time. Each read covers the whole blocks that contain the
    /// row.
    fn read_direct(ring: &mut IoUring, file: &File, out: &mut [u8], numbers: &[usize], row_bytes: usize) -> Fallible {
        let place = row_bytes.next_multiple_of(PAGE) + PAGE;
        let mut waiting = numbers.iter().zip(out.chunks_mut(place));
        let (mut in_flight, mut done) = (0, 0);
        while done < numbers.len() {
            while in_flight < QUEUE_DEPTH
                && let Some((number, place)) = waiting.next()
            {
                let start = number * row_bytes / PAGE * PAGE;
                let end = ((number + 1) * row_bytes).next_multiple_of(PAGE);
                let read = opcode::Read::new(types::Fd(file.as_raw_fd()), place.as_mut_ptr(), (end - start) as u32)
                    .offset(start as u64)
                    .build();
                // SAFETY: the slice is long enough, is used by no other read, and lives until all reads are done.
                unsafe { ring.submission().push(&read)? };
                in_flight += 1;
            }
            ring.submit_and_wait(in_flight.min(32))?;
            for completion in ring.completion() {
                if completion.result() <= 0 {
                    return Err(std::io::Error::from_raw_os_error(-completion.result()).into());
                }
                in_flight -= 1;
                done += 1;
            }
        }
        Ok(())
    }

    fn gather(map: &[u8], numbers: &[usize], out: &mut [u8], row_bytes: usize) -> Fallible {
        for (number, place) in numbers.iter().zip(out.chunks_mut(row_bytes)) {
            place.copy_from_slice(&map[number * row_bytes..][..row_bytes]);
        }
        black_box(out);
        Ok(())
    }

    /// Times in milliseconds, and the share of the files in memory before each.
    #[derive(Default)]
    struct Samples {
        millis: Vec<f64>,
        in_memory_percent: f64,
    }

    impl Samples {
        fn take(&mut self, files: &Files, run: impl FnOnce() -> Fallible) -> Fallible {
            self.in_memory_percent = self.in_memory_percent.max(files.in_memory_percent()?);
            let begin = Instant::now();
            run()?;
            self.millis.push(begin.elapsed().as_secs_f64() * 1e3);
            Ok(())
        }

        fn median(&self) -> f64 {
            let mut sorted = self.millis.clone();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
        }

        fn print(&self, name: &str, control: &Self) {
            let mut sorted = self.millis.clone();
            sorted.sort_by(f64::total_cmp);
            println!(
                "{name:<66} {:>9.2} ms {:>7.1} µs a row {:>7.2} × O_DIRECT   [{:.1} … {:.1}]  in memory before: ≤ {:.2} %",
                self.median(),
                self.median() * 1e3 / GATHER as f64,
                self.median() / control.median(),
                sorted.first().unwrap_or(&f64::NAN),
                sorted.last().unwrap_or(&f64::NAN),
                self.in_memory_percent
            );
        }
    }

    struct Bench {
        settings: Settings,
        files: Files,
        reader: Reader,
        random: Random,
        out: Vec<u8>,
        found: Vec<bool>,
    }

    impl Bench {
        fn get(&mut self, numbers: &[usize]) -> Fallible {
            let keys: Vec<u64> = numbers.iter().map(|number| *number as u64).collect();
            let shape = [self.settings.row_bytes];
            self.reader.get_batch_into_bytes(&keys, Dtype::U8, &shape, &mut self.out, &mut self.found)?;
            if self.found.contains(&false) { Err("a row is missing".into()) } else { Ok(()) }
        }

        /// One sample of `get_batch_into`, after dropping all pages and calling `before`.
        fn ours(&mut self, samples: &mut Samples, before: impl FnOnce(&mut Self) -> Fallible) -> Fallible<Vec<usize>> {
            let numbers = draw(&mut self.random, self.settings.rows);
            self.files.drop_from_memory()?;
            before(self)?;
            let files = Files { paths: self.files.paths.clone() };
            samples.take(&files, || self.get(&numbers))?;
            Ok(numbers)
        }

        /// Looks up all keys, which prefaults the index and the keys but no values.
        fn prefault_index(&mut self) -> Fallible {
            for start in (0..self.settings.rows as u64).step_by(GATHER) {
                let keys: Vec<u64> = (start..(start + GATHER as u64).min(self.settings.rows as u64)).collect();
                black_box(self.reader.contains_batch(&keys)?);
            }
            Ok(())
        }
    }

    pub(crate) fn main() -> Fallible {
        let settings = settings("tensorcask-bench-cold", 15)?;
        let _ = std::fs::remove_dir_all(&settings.dir);
        std::fs::create_dir_all(&settings.dir)?;
        load(&settings)?;
        let dir = settings.dir.clone();
        println!(
            "{} rows of {} bytes, {GATHER} random keys, in {}\n",
            settings.rows,
            settings.row_bytes,
            dir.display()
        );
        let raw = settings.dir.join("raw.bin");
        // SAFETY: the benchmark owns the file, and nothing changes it.
        let map = unsafe { Mmap::map(&File::open(&raw)?)? };
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&raw)?;
        let mut ring = IoUring::new(QUEUE_DEPTH as u32)?;
        let (rows, row_bytes, rounds) = (settings.rows, settings.row_bytes, settings.rounds);
        let mut blocks = direct_buffer(GATHER * (row_bytes.next_multiple_of(PAGE) + PAGE))?;
        let mut bench = Bench {
            files: Files::below(&settings.dir)?,
            reader: Reader::open(&settings.dir, "bench")?,
            random: Random(7),
            out: vec![1_u8; GATHER * row_bytes],
            found: vec![false; GATHER],
            settings,
        };
        bench.prefault_index()?;
        let [mut control, mut values, mut all, mut first, mut again] = [(); 5].map(|()| Samples::default());
        let [mut advised, mut faulted, mut faulted_around] = [(); 3].map(|()| Samples::default());
        for round in 0..rounds {
            let files = Files::below(&dir)?;
            let numbers = draw(&mut bench.random, rows);
            files.drop_from_memory()?;
            control.take(&files, || read_direct(&mut ring, &direct, &mut blocks, &numbers, row_bytes))?;

            let numbers = bench.ours(&mut values, Bench::prefault_index)?;
            again.take(&files, || bench.get(&numbers))?;
            bench.ours(&mut all, |_| Ok(()))?;
            bench.ours(&mut first, |bench| {
                bench.reader = Reader::open(&dir, "bench")?;
                Ok(())
            })?;

            let numbers = draw(&mut bench.random, rows);
            files.drop_from_memory()?;
            map.advise(Advice::Random)?;
            advised.take(&files, || {
                for number in &numbers {
                    map.advise_range(Advice::WillNeed, number * row_bytes, row_bytes)?;
                }
                gather(&map, &numbers, &mut bench.out, row_bytes)
            })?;
            let numbers = draw(&mut bench.random, rows);
            files.drop_from_memory()?;
            faulted.take(&files, || gather(&map, &numbers, &mut bench.out, row_bytes))?;
            // A sample takes seconds.
            if round < 2 {
                map.advise(Advice::Normal)?;
                let numbers = draw(&mut bench.random, rows);
                files.drop_from_memory()?;
                faulted_around.take(&files, || gather(&map, &numbers, &mut bench.out, row_bytes))?;
            }
        }
        control.print("io_uring, O_DIRECT, queue depth 256 (the control)", &control);
        values.print("get_batch_into: index and keys in memory, rows and checksums not", &control);
        all.print("get_batch_into: nothing in memory", &control);
        first.print("get_batch_into: nothing in memory, the first batch of a reader", &control);
        again.print("get_batch_into: the same keys again", &control);
        advised.print("a plain map: WILLNEED row by row, then copied", &control);
        faulted.print("a plain map faulted row by row, advised RANDOM", &control);
        faulted_around.print("a plain map faulted row by row, as it is", &control);
        println!(
            "\na plain map faulted row by row / get_batch_into with nothing in memory: {:.1}",
            faulted.median() / all.median()
        );
        println!("{} pages were read in together", bench.reader.stats()?.prefaulted_pages);
        drop(bench);
        Ok(std::fs::remove_dir_all(&dir)?)
    }
}
