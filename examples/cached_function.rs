//! Caches a plain function; no tensor library is needed.
//!
//! `cargo run --release -p tensorcask-examples --bin cached_function [-- CACHE_DIR]`
//!
//! Sentences are embedded by counting their letter pairs, in place of a model that takes long. The second epoch, and
//! every later run with the same folder, computes nothing.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tensorcask::Tensor;
use tensorcask_cache::{CacheOptions, CachedModule, Inputs};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const LETTERS: usize = 26;
const WIDTH: usize = 64;
const SENTENCES: [&str; 4] =
    ["the cat sat on the mat", "a dog barks at night", "owls see in the dark", "the cat sleeps"];

/// The counts of letter pairs in each row of `[sentences, WIDTH]` bytes, as `[sentences, LETTERS * LETTERS]`.
fn embed(batch: &Tensor) -> tensorcask::Result<Tensor> {
    std::thread::sleep(Duration::from_millis(20));
    let rows = batch.shape().first().copied().unwrap_or(0);
    let mut counts = vec![0.0_f32; rows * LETTERS * LETTERS];
    let texts = batch.data().chunks_exact(WIDTH);
    for (text, counts) in texts.zip(counts.chunks_exact_mut(LETTERS * LETTERS)) {
        let letter = |byte: u8| byte.is_ascii_lowercase().then(|| usize::from(byte - b'a'));
        for (first, second) in text.iter().zip(text.iter().skip(1)) {
            if let (Some(first), Some(second)) = (letter(*first), letter(*second))
                && let Some(count) = counts.get_mut(first * LETTERS + second)
            {
                *count += 1.0;
            }
        }
    }
    Tensor::from_slice(&[rows, LETTERS * LETTERS], &counts)
}

/// The sentences at some positions, padded to one width.
fn load(positions: &[usize]) -> tensorcask_cache::Result<Inputs> {
    let mut bytes = vec![0_u8; positions.len() * WIDTH];
    for (&at, place) in positions.iter().zip(bytes.chunks_exact_mut(WIDTH)) {
        let text = SENTENCES.get(at).map_or(&[][..], |text| text.as_bytes());
        place.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    }
    Ok(Inputs::from(Tensor::from_slice(&[positions.len(), WIDTH], &bytes)?))
}

fn epoch(module: &CachedModule) -> Fallible {
    let begin = Instant::now();
    let embeddings = module.forward_lazy(&SENTENCES, load)?.into_tensor()?;
    println!("{:?} in {:.1} ms: {}", embeddings.shape(), begin.elapsed().as_secs_f64() * 1e3, module.end_epoch());
    Ok(())
}

fn main() -> Fallible {
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let cache_dir = given.unwrap_or_else(|| std::env::temp_dir().join("tensorcask-cached-function"));
    let module = CacheOptions::in_folder(cache_dir, "letter-pairs").version("1").wrap_fn(embed)?;
    epoch(&module)?;
    epoch(&module)?;
    // By content: the same sentences without ids.
    let batch = load(&[0, 1])?;
    module.forward(&batch)?;
    println!("{}", module.end_epoch());
    Ok(module.close()?)
}
