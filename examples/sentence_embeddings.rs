//! A frozen BERT of candle-transformers: all-MiniLM-L6-v2 over real review sentences.
//!
//! `scripts/with-models cargo run --release -p tensorcask-examples --features candle --bin sentence_embeddings`
//!
//! Prints the time of an epoch when it is computed, when it is cached, and with a store that is opened again. It also
//! prints the difference from the embeddings of another implementation, and that cached and computed ones are equal,
//! bit for bit.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use tensorcask_candle::{CacheOptions, CachedModule, Inputs, WrapModules as _, init_logging};
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const BATCH: usize = 32;
/// Longer sentences are truncated.
const TOKENS: usize = 64;
const SENTENCES: usize = 480;

/// The sentences' embeddings, `[batch, 384]` and of length 1, from their token ids and their attention mask (1 for a
/// token, 0 for padding), both `[batch, tokens]`.
fn embed(model: &BertModel, tokens: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
    let states = model.forward(tokens, &tokens.zeros_like()?, Some(mask))?;
    let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
    let mean = states.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&mask.sum(1)?)?;
    mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)
}

/// The cached encoder.
fn cached(models: &Path, cache_dir: &Path) -> Fallible<CachedModule> {
    let config: Config = serde_json::from_slice(&std::fs::read(models.join("config.json"))?)?;
    let weights = candle_core::safetensors::load(models.join("model.safetensors"), &Device::Cpu)?;
    // The model shares these tensors, so there is no second copy of them.
    let model = BertModel::load(VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu), &config)?;
    let options = CacheOptions::in_folder(cache_dir, "all-MiniLM-L6-v2").version("1").argument("tokens", TOKENS);
    let forward = move |inputs: &Inputs| Ok(embed(&model, inputs.tensor(0)?, inputs.tensor(1)?));
    Ok(options.wrap_inputs_fn_with(weights, forward)?)
}

/// Truncates and pads every sentence to one length, so that a sentence's embedding does not depend on the others of its
/// batch.
fn tokenizer(models: &Path) -> Fallible<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(models.join("tokenizer.json"))?;
    tokenizer.with_truncation(Some(TruncationParams { max_length: TOKENS, ..Default::default() }))?;
    let strategy = PaddingStrategy::Fixed(TOKENS);
    tokenizer.with_padding(Some(PaddingParams { strategy, ..Default::default() }));
    Ok(tokenizer)
}

/// Token ids and attention mask.
fn encode(tokenizer: &Tokenizer, sentences: &[&str]) -> Fallible<[Tensor; 2]> {
    let encodings = tokenizer.encode_batch(sentences.to_vec(), true)?;
    let shape = (sentences.len(), TOKENS);
    let ids: Vec<u32> = encodings.iter().flat_map(|each| each.get_ids()).copied().collect();
    let mask: Vec<u32> = encodings.iter().flat_map(|each| each.get_attention_mask()).copied().collect();
    Ok([Tensor::from_vec(ids, shape, &Device::Cpu)?, Tensor::from_vec(mask, shape, &Device::Cpu)?])
}

/// Runs an epoch by ids. Only missing sentences are tokenised.
fn epoch(name: &str, module: &CachedModule, tokenizer: &Tokenizer, sentences: &[String]) -> Fallible<(Tensor, f64)> {
    let begin = Instant::now();
    let ids: Vec<u64> = (0..sentences.len() as u64).collect();
    let mut parts = Vec::new();
    for (ids, sentences) in ids.chunks(BATCH).zip(sentences.chunks(BATCH)) {
        let output = module.call(Inputs::tensors(2)).ids(ids).run_lazy(Device::Cpu, |missing| {
            let missing: Vec<&str> = missing.iter().filter_map(|&at| sentences.get(at)).map(String::as_str).collect();
            let [tokens, mask] = encode(tokenizer, &missing).map_err(tensorcask_candle::Error::compute)?;
            Ok(Inputs::from([&tokens, &mask]))
        })?;
        parts.push(output.into_tensor()?);
    }
    let (embeddings, seconds) = (Tensor::cat(&parts, 0)?, begin.elapsed().as_secs_f64());
    println!("{name}: {seconds:.4} s, {}", module.end_epoch());
    Ok((embeddings, seconds))
}

/// The largest difference of the first embeddings from those that another implementation computed.
fn distance_from_reference(embeddings: &Tensor) -> Fallible<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/minilm_reference.json");
    let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let expected = reference.get("embeddings").cloned().ok_or("the reference lacks a field")?;
    let expected: Vec<Vec<f32>> = serde_json::from_value(expected)?;
    let expected = Tensor::new(expected, &Device::Cpu)?;
    let farthest = (embeddings.narrow(0, 0, expected.dim(0)?)? - expected)?.abs()?.max_all()?.to_scalar()?;
    if farthest > 1e-5 {
        return Err(format!("the encoder is {farthest:e} from the reference").into());
    }
    Ok(farthest)
}

fn bits(embeddings: &Tensor) -> Fallible<Vec<u32>> {
    Ok(embeddings.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

fn main() -> Fallible {
    init_logging()?;
    let models = std::env::var_os("TENSORCASK_MODELS").ok_or("run this with scripts/with-models")?;
    let models = PathBuf::from(models).join("all-MiniLM-L6-v2");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sentences.tsv"))?;
    let sentences = text.lines().take(SENTENCES).filter_map(|line| line.split_once('\t'));
    let sentences: Vec<String> = sentences.map(|(_score, sentence)| sentence.to_owned()).collect();
    let (tokenizer, folder) = (tokenizer(&models)?, tempfile::tempdir()?);

    let module = cached(&models, folder.path())?;
    let (computed, first_s) = epoch("epoch 1", &module, &tokenizer, &sentences)?;
    println!("within {:.1e} of the reference embeddings", distance_from_reference(&computed)?);
    let (second, second_s) = epoch("epoch 2", &module, &tokenizer, &sentences)?;
    println!("{:.0} times as fast", first_s / second_s);
    module.close()?;
    let module = cached(&models, folder.path())?;
    let (third, _) = epoch("epoch 3, opened again", &module, &tokenizer, &sentences)?;

    // By content, the tokens are the key, and a sentence needs no id. Without the cache, the model runs directly.
    let some: Vec<&str> = sentences.iter().take(BATCH).map(String::as_str).collect();
    let [tokens, mask] = encode(&tokenizer, &some)?;
    module.forward([&tokens, &mask])?;
    let by_content = module.forward([&tokens, &mask])?.into_tensor()?;
    println!("by content, twice: {}", module.end_epoch());
    module.set_enabled(false);
    let directly = module.forward([&tokens, &mask])?.into_tensor()?;

    let expected = bits(&computed)?;
    let mut same = expected == bits(&second)? && expected == bits(&third)?;
    same &= [bits(&by_content)?, bits(&directly)?].iter().all(|some| expected.starts_with(some));
    println!("cached and computed embeddings are the same, bit for bit: {same}");
    module.close()?;
    if same { Ok(()) } else { Err("they are not".into()) }
}
