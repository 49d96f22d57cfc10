//! Computes an expensive feature of each of 1,797 real handwritten digits once, and reads it from the store afterwards.
//!
//! `cargo run --release --bin quickstart [FOLDER]`; without a folder the store is a temporary one.
//!
//! The loop is that of any training with a frozen backbone: for each batch, get the features from the store, compute
//! the missing ones, and put them. It is the same code in the first epoch and in all later ones.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tensorcask::{Options, Store};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// The data set. examples/data/README.md describes its source.
const DIGITS: &str = include_str!("data/optdigits.csv");
/// Images are 8 × 8, and are upsampled to 32 × 32.
const SIDE: usize = 8;
const FINE: usize = 32;
/// The filter bank: wavelengths × orientations, and a grid of cells in which each response is pooled.
const WAVELENGTHS: [f32; 4] = [4.0, 6.0, 9.0, 13.0];
const ORIENTATIONS: usize = 8;
const RADIUS: usize = 7;
const TAPS: usize = 2 * RADIUS + 1;
const PADDED: usize = FINE + 2 * RADIUS;
const GRID: usize = 4;
const FEATURES: usize = WAVELENGTHS.len() * ORIENTATIONS * GRID * GRID;
const BATCH: usize = 128;
/// The number of images that the classifier knows; it classifies the others.
const REFERENCES: usize = 1200;

struct Sample {
    key: String,
    pixels: [f32; SIDE * SIDE],
    digit: u8,
}

fn samples() -> Fallible<Vec<Sample>> {
    let parse = |(number, line): (usize, &str)| -> Fallible<Sample> {
        let numbers = line.split(',').map(str::parse::<u8>).collect::<Result<Vec<_>, _>>()?;
        let (digit, grey) = numbers.split_last().ok_or("an empty line")?;
        let mut pixels = [0.0; SIDE * SIDE];
        pixels.iter_mut().zip(grey).for_each(|(pixel, grey)| *pixel = f32::from(*grey) / 16.0);
        Ok(Sample { key: format!("optdigits/test/{number:04}"), pixels, digit: *digit })
    };
    DIGITS.lines().enumerate().map(parse).collect()
}

/// The frozen backbone: a bank of Gabor filters. It is slow because it is plain code. Its results never change, which
/// is the only requirement for caching.
struct GaborBank {
    filters: Vec<Vec<f32>>,
}

impl GaborBank {
    fn new() -> Self {
        let mut filters = Vec::new();
        for wavelength in WAVELENGTHS {
            for orientation in 0..ORIENTATIONS {
                let (sin, cos) = (orientation as f32 * std::f32::consts::PI / ORIENTATIONS as f32).sin_cos();
                let tap = |i: usize| i as f32 - RADIUS as f32;
                let taps = (0..TAPS).flat_map(|y| (0..TAPS).map(move |x| (tap(x), tap(y))));
                let gabor = taps.map(|(x, y)| {
                    let (along, across) = (x * cos + y * sin, y * cos - x * sin);
                    let envelope = (-(along * along + across * across) / (0.3 * wavelength * wavelength)).exp();
                    envelope * (std::f32::consts::TAU * along / wavelength).cos()
                });
                let mut filter: Vec<f32> = gabor.collect();
                let mean = filter.iter().sum::<f32>() / filter.len() as f32;
                filter.iter_mut().for_each(|tap| *tap -= mean);
                filters.push(filter);
            }
        }
        Self { filters }
    }

    /// The features of one image: rectified responses, pooled in cells, normalised to length one.
    fn forward(&self, pixels: &[f32; SIDE * SIDE]) -> Vec<f32> {
        let image = upsample(pixels);
        let mut features: Vec<f32> = self.filters.iter().flat_map(|filter| pooled_response(&image, filter)).collect();
        let norm = features.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
        features.iter_mut().for_each(|x| *x /= norm);
        features
    }
}

/// Upsamples bilinearly, with a margin of zeros as wide as a filter's radius.
fn upsample(pixels: &[f32; SIDE * SIDE]) -> Vec<f32> {
    let pixel = |x: isize, y: isize| {
        let inside = |v: isize| usize::try_from(v).ok().filter(|v| *v < SIDE);
        inside(x).zip(inside(y)).and_then(|(x, y)| pixels.get(y * SIDE + x)).copied().unwrap_or(0.0)
    };
    let place = |padded: usize| ((padded - RADIUS) as f32 + 0.5) * SIDE as f32 / FINE as f32 - 0.5;
    let sample = |x: f32, y: f32| {
        let (fx, fy, left, top) = (x - x.floor(), y - y.floor(), x.floor() as isize, y.floor() as isize);
        let row = |y: isize| pixel(left, y) * (1.0 - fx) + pixel(left + 1, y) * fx;
        row(top) * (1.0 - fy) + row(top + 1) * fy
    };
    let inner = RADIUS..RADIUS + FINE;
    let padded = (0..PADDED * PADDED).map(|i| (i % PADDED, i / PADDED));
    padded
        .map(|(x, y)| if inner.contains(&x) && inner.contains(&y) { sample(place(x), place(y)) } else { 0.0 })
        .collect()
}

fn pooled_response(image: &[f32], filter: &[f32]) -> [f32; GRID * GRID] {
    let mut cells = [0.0; GRID * GRID];
    for y in 0..FINE {
        for x in 0..FINE {
            let lines = image.chunks(PADDED).skip(y).filter_map(|line| line.get(x..x + TAPS));
            let response: f32 = lines
                .zip(filter.chunks(TAPS))
                .map(|(line, taps)| line.iter().zip(taps).map(|(a, b)| a * b).sum::<f32>())
                .sum();
            if let Some(pooled) = cells.get_mut((y * GRID / FINE) * GRID + x * GRID / FINE) {
                *pooled += response.max(0.0);
            }
        }
    }
    cells
}

struct Epoch {
    features: Vec<f32>,
    hits: usize,
    misses: usize,
    elapsed: Duration,
}

/// Runs one pass over the data set through the store.
fn epoch(store: &Store, bank: &GaborBank, samples: &[Sample]) -> Fallible<Epoch> {
    let start = Instant::now();
    let mut features = vec![0.0_f32; samples.len() * FEATURES];
    let mut hits = 0;
    for (batch, rows) in samples.chunks(BATCH).zip(features.chunks_mut(BATCH * FEATURES)) {
        let keys: Vec<&str> = batch.iter().map(|sample| sample.key.as_str()).collect();
        let mut found = vec![false; keys.len()];
        hits += store.get_batch_into(&keys, &[FEATURES], rows, &mut found)?;

        // Only missing features are computed, and put as one contiguous tensor.
        let (mut new_keys, mut new_rows) = (Vec::new(), Vec::new());
        for ((sample, row), _) in batch.iter().zip(rows.chunks_mut(FEATURES)).zip(&found).filter(|(_, found)| !**found)
        {
            let computed = bank.forward(&sample.pixels);
            row.copy_from_slice(&computed);
            new_keys.push(sample.key.as_str());
            new_rows.extend(computed);
        }
        store.put_rows(&new_keys, &[FEATURES], &new_rows)?;
    }
    Ok(Epoch { features, hits, misses: samples.len() - hits, elapsed: start.elapsed() })
}

/// The accuracy of a nearest-neighbour classifier on normalised features.
fn accuracy(features: &[f32], samples: &[Sample]) -> f64 {
    let (known, asked) = samples.split_at(REFERENCES);
    let (known_rows, asked_rows) = features.split_at(REFERENCES * FEATURES);
    let nearest = |row: &[f32]| {
        let similarity = |other: &[f32]| row.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
        let scored =
            known.iter().zip(known_rows.chunks(FEATURES)).map(|(sample, other)| (similarity(other), sample.digit));
        scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, digit)| digit)
    };
    let right =
        asked.iter().zip(asked_rows.chunks(FEATURES)).filter(|(sample, row)| nearest(row) == Some(sample.digit));
    right.count() as f64 / asked.len() as f64
}

fn report(name: &str, epoch: &Epoch, first: Option<&Epoch>) {
    let speed = first.map_or(String::new(), |first| {
        format!("   {:.0} times as fast as computing", first.elapsed.as_secs_f64() / epoch.elapsed.as_secs_f64())
    });
    println!(
        "{name:<34} {:>5} hits {:>5} misses {:>9.2} ms{speed}",
        epoch.hits,
        epoch.misses,
        epoch.elapsed.as_secs_f64() * 1e3
    );
}

fn folder_bytes(path: &Path) -> Fallible<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}

fn main() -> Fallible {
    let given = std::env::args().nth(1).map(PathBuf::from);
    let cache_dir = given.clone().unwrap_or_else(|| std::env::temp_dir().join("tensorcask-quickstart"));
    if given.is_none() && cache_dir.exists() {
        std::fs::remove_dir_all(&cache_dir)?;
    }
    let samples = samples()?;
    let bank = GaborBank::new();
    println!("{} images, {FEATURES} f32 features each, store in {}\n", samples.len(), cache_dir.display());

    let store = Store::open(&cache_dir, "gabor-bank-v1")?;
    let first = epoch(&store, &bank, &samples)?;
    report("epoch 1", &first, None);
    let second = epoch(&store, &bank, &samples)?;
    report("epoch 2", &second, Some(&first));
    store.close()?;
    drop(store);

    // Reopens the store, as the next run would: nothing is left in memory.
    let store = Options::new().open(&cache_dir, "gabor-bank-v1")?;
    let opened = store.open_report().elapsed;
    let third = epoch(&store, &bank, &samples)?;
    report("epoch 3, after reopening", &third, Some(&first));

    let bytes = folder_bytes(&cache_dir.join("gabor-bank-v1"))?;
    let raw = samples.len() * FEATURES * 4;
    println!("\nopened in {:.2} ms, {} keys", opened.as_secs_f64() * 1e3, store.len()?);
    println!(
        "on disk: {bytes} bytes, {:.1} a row over the {} raw ones",
        (bytes as f64 - raw as f64) / samples.len() as f64,
        FEATURES * 4
    );

    let computed: Vec<f32> = samples.iter().take(100).flat_map(|sample| bank.forward(&sample.pixels)).collect();
    let same = first.features.iter().map(|x| x.to_bits()).eq(third.features.iter().map(|x| x.to_bits()))
        && computed.iter().zip(&third.features).all(|(a, b)| a.to_bits() == b.to_bits());
    println!("features read are bit for bit those computed: {same}");
    let (without, with) = (accuracy(&first.features, &samples), accuracy(&third.features, &samples));
    println!(
        "nearest neighbour on {} images: {:.2} % right computed, {:.2} % right cached",
        samples.len() - REFERENCES,
        without * 100.0,
        with * 100.0
    );
    store.close()?;
    if !same || without != with {
        return Err("the cache changed the result".into());
    }
    Ok(())
}
