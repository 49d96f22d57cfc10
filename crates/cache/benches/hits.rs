//! Batches of 256 hits through the layer: outputs of one tensor, and maps of tensors of as many bytes in all.
//!
//! `cargo bench -p tensorcask-cache --bench hits`

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use tensorcask::Tensor;
use tensorcask_cache::{CacheOptions, CachedModule, Output};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const BATCH: usize = 256;
const ROWS: u64 = 50_000;
const ROUNDS: usize = 400;
/// Elements of a row.
const ELEMENTS: usize = 768;
const LEAVES: [usize; 3] = [1, 2, 8];

/// An output of `leaves` tensors, `ELEMENTS` in all for each row; of one leaf, the tensor itself.
fn output(x: &Tensor, leaves: usize) -> tensorcask::Result<Output> {
    let rows = x.shape().first().copied().unwrap_or(0);
    let width = ELEMENTS / leaves;
    let tensor = || Tensor::from_slice(&[rows, width], &vec![0.5_f32; rows * width]).map(Output::Tensor);
    if leaves == 1 {
        return tensor();
    }
    Ok(Output::Map((0..leaves).map(|leaf| Ok((format!("leaf {leaf}"), tensor()?))).collect::<tensorcask::Result<_>>()?))
}

/// A wrapped function whose outputs are cached.
fn filled(dir: &std::path::Path, leaves: usize) -> Fallible<CachedModule> {
    let options = CacheOptions::in_folder(dir, format!("leaves-{leaves}")).version("1");
    let module = options.wrap_fn(move |x: &Tensor| output(x, leaves))?;
    let ids: Vec<u64> = (0..ROWS).collect();
    for ids in ids.chunks(2048) {
        let x = Tensor::from_slice(&[ids.len(), 1], &vec![0.0_f32; ids.len()])?;
        module.forward_with_ids(&x, ids)?;
    }
    module.flush()?;
    Ok(module)
}

fn main() -> Fallible {
    let dir = tempfile::tempdir()?;
    let modules: Vec<CachedModule> =
        LEAVES.iter().map(|leaves| filled(dir.path(), *leaves)).collect::<Fallible<_>>()?;
    let x = Tensor::from_slice(&[BATCH, 1], &[0.0_f32; BATCH])?;
    let mut times = vec![Vec::new(); LEAVES.len()];
    let mut next = 0_u64;
    // The first rounds compare checksums.
    for round in 0..2 * ROUNDS {
        let ids: Vec<u64> = (0..BATCH)
            .map(|_| {
                next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (next >> 33) % ROWS
            })
            .collect();
        for (module, times) in modules.iter().zip(&mut times) {
            let begin = Instant::now();
            black_box(module.forward_with_ids(&x, &ids)?);
            if round >= ROUNDS {
                times.push(begin.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    let mut one = None;
    for (leaves, mut times) in LEAVES.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        println!("{leaves} leaves: {median:.1} us, {:.2} of one", median / *one.get_or_insert(median));
    }
    Ok(())
}
