//! Batched reads of values of several leaves, in one pass and as values, next to one tensor of as many bytes.
//!
//! `cargo bench --bench leaves`; in `TENSORCASK_BENCH_DIR`.
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]

#[path = "support/folder.rs"]
mod folder;
#[path = "support/random.rs"]
mod random;

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use random::Random;
use tensorcask::{Codec, Dtype, LeafBuffer, Options, Reader, Schema, Tensor, Value};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Keys of a batch that is read.
const GATHER: usize = 256;
/// Rows of a batch that is put, and of a store of packed rows.
const BATCH: usize = 2048;
const ROWS: usize = 30 * BATCH;
const ROW_BYTES: usize = 3072;
const ROUNDS: usize = 400;
const LEAVES: [usize; 3] = [1, 2, 8];

/// A value of `leaves` tensors that take [`ROW_BYTES`] in all; of one leaf, the tensor itself.
fn value(leaves: usize, random: &mut Random) -> Fallible<Value> {
    let mut tensor = || -> Fallible<Value> {
        // Floats of similar magnitude, which packing makes smaller.
        let numbers: Vec<f32> =
            (0..ROW_BYTES / leaves / 4).map(|_| 1.0 + random.below(1 << 12) as f32 / 8192.0).collect();
        Ok(Tensor::from_slice(&[numbers.len()], &numbers)?.into())
    };
    if leaves == 1 {
        return tensor();
    }
    Ok(Value::Map((0..leaves).map(|leaf| Ok((format!("leaf {leaf}"), tensor()?))).collect::<Fallible<_>>()?))
}

/// A store of values, and the buffers of a batch.
struct Store {
    leaves: usize,
    reader: Reader,
    schema: Schema,
    paths: Vec<String>,
    buffers: Vec<Vec<u8>>,
    found: Vec<bool>,
}

impl Store {
    fn load(dir: &Path, rows: usize, leaves: usize, codec: Codec) -> Fallible<Self> {
        let name = format!("{}-{leaves}", codec.name());
        let store = Options::new().codec(codec).open(dir, &name)?;
        let mut random = Random(1);
        for start in (0..rows).step_by(BATCH) {
            let keys: Vec<u64> = (start as u64..(start + BATCH) as u64).collect();
            let values: Vec<Value> = keys.iter().map(|_| value(leaves, &mut random)).collect::<Fallible<_>>()?;
            store.put_batch(&keys, &values)?;
        }
        store.close()?;
        let reader = Reader::open(dir, &name)?;
        reader.preload(u64::MAX)?;
        let schema = reader.schemas()?.remove(0).schema;
        let paths = schema.leaves().iter().map(|leaf| leaf.path().to_owned()).collect();
        let buffers = vec![vec![1; GATHER * ROW_BYTES / leaves]; leaves];
        Ok(Self { leaves, reader, schema, paths, buffers, found: vec![false; GATHER] })
    }

    /// In one pass.
    fn gather(&mut self, keys: &[u64]) -> Fallible<f64> {
        let mut outs: Vec<&mut [u8]> = self.buffers.iter_mut().map(Vec::as_mut_slice).collect();
        let begin = Instant::now();
        let hits = self.reader.get_values_into(keys, &self.schema, &mut outs, &mut self.found)?;
        whole(hits, keys, begin)
    }

    /// The first leaf alone.
    fn gather_first(&mut self, keys: &[u64]) -> Fallible<f64> {
        let shape = [self.buffers.first().map_or(0, Vec::len) / 4 / GATHER];
        let (Some(path), Some(buffer)) = (self.paths.first(), self.buffers.first_mut()) else { return Ok(0.0) };
        let mut leaves = [LeafBuffer::bytes(path, Dtype::F32, &shape, buffer)];
        let begin = Instant::now();
        let hits = self.reader.get_leaves_into(keys, &mut leaves, &mut self.found)?;
        whole(hits, keys, begin)
    }

    /// As values, whose tensors are then copied.
    fn values(&mut self, keys: &[u64]) -> Fallible<f64> {
        let begin = Instant::now();
        let values: Vec<Value> =
            self.reader.get_batch(keys)?.into_iter().collect::<Result<Option<_>, _>>()?.ok_or("a row is missing")?;
        let width = self.buffers.first().map_or(0, Vec::len) / GATHER;
        for (row, value) in values.iter().enumerate() {
            let tensors: Vec<&Value> = match value {
                Value::Map(items) => items.iter().map(|(_, item)| item).collect(),
                other => vec![other],
            };
            for (tensor, buffer) in tensors.into_iter().zip(&mut self.buffers) {
                let place = buffer.get_mut(row * width..(row + 1) * width);
                let (Some(place), Some(tensor)) = (place, tensor.as_tensor()) else { return Err("no place".into()) };
                place.copy_from_slice(tensor.data());
            }
        }
        black_box(&self.buffers);
        whole(values.len(), keys, begin)
    }
}

/// The microseconds since `begin`.
fn whole(hits: usize, keys: &[u64], begin: Instant) -> Fallible<f64> {
    let elapsed = begin.elapsed().as_secs_f64() * 1e6;
    if hits == keys.len() { Ok(elapsed) } else { Err("a row is missing".into()) }
}

/// The lower quartile: other programs only add time.
fn quartile(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 10).copied().unwrap_or(f64::NAN)
}

type Read = fn(&mut Store, &[u64]) -> Fallible<f64>;

/// The time of each kind of read of each store. They take turns, each with keys of its own, so that none finds rows in
/// the processor's caches.
fn measure(rows: usize, stores: &mut [Store], reads: &[Read]) -> Fallible<Vec<Vec<f64>>> {
    let mut times = vec![vec![Vec::new(); reads.len()]; stores.len()];
    let mut random = Random(7);
    for _ in 0..ROUNDS {
        for (read, number) in reads.iter().zip(0..) {
            for (store, times) in stores.iter_mut().zip(&mut times) {
                let keys: Vec<u64> = (0..GATHER).map(|_| random.below(rows as u64)).collect();
                let elapsed = read(store, &keys)?;
                times.get_mut(number).into_iter().for_each(|times: &mut Vec<f64>| times.push(elapsed));
            }
        }
    }
    Ok(times.into_iter().map(|store| store.into_iter().map(quartile).collect()).collect())
}

fn main() -> Fallible {
    let dir = folder::folder();
    println!("batches of {GATHER} random keys, {ROW_BYTES} B each");
    for (codec, rows) in [(Codec::None, ROWS), (Codec::ShuffleZstd { level: 3 }, BATCH)] {
        let load = |leaves: &usize| Store::load(dir.path(), rows, *leaves, codec);
        let mut stores: Vec<Store> = LEAVES.iter().map(load).collect::<Fallible<_>>()?;
        // The first read of a row compares its checksum.
        let all: Vec<u64> = (0..rows as u64).collect();
        for store in &mut stores {
            all.chunks_exact(GATHER).try_for_each(|keys| store.gather(keys).map(drop))?;
        }
        let times = measure(rows, &mut stores, &[Store::gather, Store::values, Store::gather_first])?;
        let one = times.first().and_then(|times| times.first()).copied().unwrap_or(f64::NAN);
        println!("\n{}", codec.name());
        println!("{:>7} {:>12} {:>12} {:>12} {:>12}", "leaves", "one pass", "of one", "as values", "first leaf");
        for (store, times) in stores.iter().zip(&times) {
            let [gather, values, first] = times.as_slice() else { continue };
            let ratio = gather / one;
            println!("{:>7} {gather:>9.1} us {ratio:>12.2} {values:>9.1} us {first:>9.1} us", store.leaves);
        }
    }
    Ok(())
}
