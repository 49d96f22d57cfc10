//! Trains a small model on a frozen sentence encoder: all-MiniLM-L6-v2 over 2,400 review sentences.
//!
//! `scripts/with-torch --models cargo run --release -p tensorcask-examples --features torch --bin frozen_encoder`
//!
//! Prints the time of an epoch when it is computed, when it is cached, in a new process, and in a k-fold
//! cross-validation of a ridge regression from embeddings to the sentiment ratings of the sentences. It also shows the
//! effect of another checkpoint, and that cached and computed embeddings are equal, bit for bit.

mod encoder;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use encoder::{Encoder, Sentences};
use tch::{Device, Kind, Tensor};
use tensorcask_torch::{CacheOptions, CachedModule, Inputs, Variables, WrapModules as _, init_logging};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const BATCH: usize = 64;
/// Longer sentences (26 of the 2,400) are truncated.
const TOKENS: usize = 64;
const FOLDS: usize = 5;
/// Marks the new process, and passes it the folder of the cache.
const CHILD: &str = "TENSORCASK_EXAMPLE_CHILD";

struct Corpus {
    ids: Vec<u64>,
    sentences: Vec<String>,
    scores: Tensor,
}

fn corpus() -> Fallible<Corpus> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sentences.tsv"))?;
    let (mut sentences, mut scores) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (score, sentence) = line.split_once('\t').ok_or("a line without a tab")?;
        scores.push(score.parse::<f32>()?);
        sentences.push(sentence.to_owned());
    }
    Ok(Corpus { ids: (0..sentences.len() as u64).collect(), sentences, scores: Tensor::from_slice(&scores) })
}

/// The cached encoder, as in a training script.
fn cached(models: &Path, cache_dir: &Path, change: impl Fn(&Encoder)) -> Fallible<CachedModule> {
    let encoder = Encoder::load(models, Device::Cpu)?;
    change(&encoder);
    let variables = Variables::from(&encoder.variables);
    let options = CacheOptions::in_folder(cache_dir, "all-MiniLM-L6-v2").version("1").argument("tokens", TOKENS);
    let forward = move |inputs: &Inputs| Ok(encoder.forward(inputs.tensor(0)?, inputs.tensor(1)?));
    Ok(options.wrap_inputs_fn_with(variables, forward)?)
}

/// The embeddings of the sentences of `ids`. Only missing sentences are tokenised.
fn embed(module: &CachedModule, tokenizer: &Sentences, corpus: &Corpus, ids: &[u64]) -> Fallible<Tensor> {
    let mut parts = Vec::new();
    for batch in ids.chunks(BATCH) {
        let call = module.call(Inputs::tensors(2)).ids(batch);
        let output = call.run_lazy(Device::Cpu, |missing| {
            let of = |&at: &usize| corpus.sentences.get(*batch.get(at)? as usize).map(String::as_str);
            let sentences: Vec<&str> = missing.iter().filter_map(of).collect();
            let (tokens, mask) = tokenizer.encode(&sentences).map_err(tensorcask_torch::Error::compute)?;
            Ok(Inputs::from([&tokens, &mask]))
        })?;
        parts.push(output.into_tensor()?);
    }
    Ok(Tensor::cat(&parts, 0))
}

/// Runs an epoch. Returns its embeddings, the seconds it took, and the number of samples it computed.
fn epoch(module: &CachedModule, tokenizer: &Sentences, corpus: &Corpus) -> Fallible<(Tensor, f64, u64)> {
    let begin = Instant::now();
    let embeddings = embed(module, tokenizer, corpus, &corpus.ids)?;
    Ok((embeddings, begin.elapsed().as_secs_f64(), module.end_epoch().misses))
}

/// Weights of a ridge regression with an intercept.
fn fit(x: &Tensor, y: &Tensor) -> Fallible<Tensor> {
    let x = Tensor::cat(&[x, &x.ones_like().narrow(1, 0, 1)], 1);
    let ridge = Tensor::eye(x.size2()?.1, (Kind::Float, Device::Cpu));
    Ok((x.tr().matmul(&x) + ridge).f_inverse()?.f_matmul(&x.tr().matmul(&y.unsqueeze(1)))?)
}

fn correlation(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a - a.mean(Kind::Float), b - b.mean(Kind::Float));
    ((&a * &b).sum(Kind::Double) / ((&a * &a).sum(Kind::Double) * (&b * &b).sum(Kind::Double)).sqrt()).double_value(&[])
}

/// Each fold embeds its training and its test sentences through the cache. Returns the mean correlation, and the
/// seconds.
fn cross_validate(module: &CachedModule, tokenizer: &Sentences, corpus: &Corpus) -> Fallible<(f64, f64)> {
    let begin = Instant::now();
    let mut sum = 0.0;
    for fold in 0..FOLDS as u64 {
        let (test, train): (Vec<u64>, Vec<u64>) = corpus.ids.iter().partition(|id| **id % FOLDS as u64 == fold);
        let scores = |ids: &[u64]| {
            let ids: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
            corpus.scores.index_select(0, &Tensor::from_slice(&ids))
        };
        let weights = fit(&embed(module, tokenizer, corpus, &train)?, &scores(&train))?;
        let x = embed(module, tokenizer, corpus, &test)?;
        let predicted = Tensor::cat(&[&x, &x.ones_like().narrow(1, 0, 1)], 1).matmul(&weights).squeeze_dim(1);
        sum += correlation(&predicted, &scores(&test));
    }
    Ok((sum / FOLDS as f64, begin.elapsed().as_secs_f64()))
}

/// The largest difference from embeddings that another implementation computed.
fn check_reference(encoder: &Encoder, tokenizer: &Sentences) -> Fallible<f64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/minilm_reference.json");
    let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let field = |name: &str| reference.get(name).cloned().ok_or("the reference lacks a field");
    let sentences: Vec<String> = serde_json::from_value(field("sentences")?)?;
    let expected: Vec<Vec<f64>> = serde_json::from_value(field("embeddings")?)?;
    let (tokens, mask) = tokenizer.encode(&sentences.iter().map(String::as_str).collect::<Vec<_>>())?;
    let expected = Tensor::from_slice(&expected.concat()).reshape([sentences.len() as i64, -1]);
    let farthest = (encoder.forward(&tokens, &mask).to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
    if farthest > 1e-5 {
        return Err(format!("the encoder is {farthest:e} from the reference").into());
    }
    Ok(farthest)
}

fn models() -> Fallible<PathBuf> {
    let folder = std::env::var_os("TENSORCASK_MODELS").ok_or("run this with scripts/with-torch --models")?;
    Ok(Path::new(&folder).join("all-MiniLM-L6-v2"))
}

fn main() -> Fallible {
    init_logging()?;
    // On one thread, libtorch computes the same bits for a sentence in any batch.
    tch::set_num_threads(1);
    let (models, corpus) = (models()?, corpus()?);
    let tokenizer = Sentences::load(&models, TOKENS)?;
    if let Some(cache_dir) = std::env::var_os(CHILD) {
        let begin = Instant::now();
        let module = cached(&models, Path::new(&cache_dir), |_| {})?;
        let (_, _, computed) = epoch(&module, &tokenizer, &corpus)?;
        println!("new process {:.3} s with {computed} computed", begin.elapsed().as_secs_f64());
        return Ok(());
    }
    let plain = Encoder::load(&models, Device::Cpu)?;
    let farthest = check_reference(&plain, &tokenizer)?;
    println!("encoder: within {farthest:.1e} of the reference embeddings");

    let folder = tempfile::tempdir()?;
    let module = cached(&models, folder.path(), |_| {})?;
    let (first, computed_s, computed) = epoch(&module, &tokenizer, &corpus)?;
    println!("epoch 1: {computed_s:.2} s, {computed} of {} sentences computed", corpus.ids.len());
    let (second, cached_s, computed) = epoch(&module, &tokenizer, &corpus)?;
    println!("epoch 2: {cached_s:.4} s, {computed} computed: {:.0} times as fast", computed_s / cached_s);
    module.flush()?;

    let child = Command::new(std::env::current_exe()?).env(CHILD, folder.path()).output()?;
    print!("{}{}", String::from_utf8(child.stdout)?, String::from_utf8(child.stderr)?);

    let (correlation, seconds) = cross_validate(&module, &tokenizer, &corpus)?;
    let computed = module.end_epoch().misses;
    println!(
        "{FOLDS}-fold ridge regression to people's sentiment: r = {correlation:.3}, {seconds:.2} s with all fits, \
         {computed} computed"
    );

    // Another checkpoint: one weight differs.
    let other = cached(&models, folder.path(), |encoder| {
        let _guard = tch::no_grad_guard();
        if let Some(bias) = encoder.variables.variables().get("embeddings.LayerNorm.bias") {
            let _changed = bias.narrow(0, 0, 1).f_add_scalar_(0.01);
        }
    })?;
    let some = corpus.ids.get(..4 * BATCH).unwrap_or(&corpus.ids);
    let _embeddings = embed(&other, &tokenizer, &corpus, some)?;
    let counts = other.end_epoch();
    println!("another checkpoint: {} of {} computed; {}", counts.misses, some.len(), other.why_miss(&[2000_u64])?);

    // Cached and computed embeddings have the same bits.
    let mut same = first.equal(&second);
    let mut directly = Vec::new();
    for batch in some.chunks(37) {
        let sentences: Vec<&str> =
            batch.iter().filter_map(|&id| corpus.sentences.get(id as usize)).map(String::as_str).collect();
        let (tokens, mask) = tokenizer.encode(&sentences)?;
        directly.push(plain.forward(&tokens, &mask));
    }
    same &= Tensor::cat(&directly, 0).equal(&second.narrow(0, 0, some.len() as i64));
    println!("cached and computed embeddings are the same, bit for bit: {same}");
    module.close()?;
    if same { Ok(()) } else { Err("they are not".into()) }
}
