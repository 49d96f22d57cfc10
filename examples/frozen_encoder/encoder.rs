//! The all-MiniLM-L6-v2 sentence encoder: a BERT of six layers, mean pooling, L2 normalisation.

use std::error::Error;
use std::path::Path;

use tch::nn::{self, Init, Module};
use tch::{Device, IndexOp, Kind, Tensor, no_grad};
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The length of an embedding.
const DIMS: i64 = 384;

const VOCABULARY: i64 = 30_522;
const POSITIONS: i64 = 512;
const SEGMENTS: i64 = 2;
const LAYERS: i64 = 6;
const HEADS: i64 = 12;
const INNER_DIMS: i64 = 1536;
const LAYER_NORM_EPS: f64 = 1e-12;
const ZEROS: Init = Init::Const(0.0);

fn embedding(path: nn::Path, rows: i64) -> nn::Embedding {
    nn::embedding(path, rows, DIMS, nn::EmbeddingConfig { ws_init: ZEROS, ..Default::default() })
}

fn linear(path: nn::Path, from: i64, to: i64) -> nn::Linear {
    nn::linear(path, from, to, nn::LinearConfig { ws_init: ZEROS, bs_init: Some(ZEROS), bias: true })
}

fn layer_norm(path: nn::Path) -> nn::LayerNorm {
    nn::layer_norm(path, vec![DIMS], nn::LayerNormConfig { eps: LAYER_NORM_EPS, ..Default::default() })
}

#[derive(Debug)]
struct Layer {
    query: nn::Linear,
    key: nn::Linear,
    value: nn::Linear,
    attended: nn::Linear,
    attended_norm: nn::LayerNorm,
    inner: nn::Linear,
    outer: nn::Linear,
    outer_norm: nn::LayerNorm,
}

impl Layer {
    fn new(path: nn::Path) -> Layer {
        let attention = &path / "attention";
        Layer {
            query: linear(&attention / "self" / "query", DIMS, DIMS),
            key: linear(&attention / "self" / "key", DIMS, DIMS),
            value: linear(&attention / "self" / "value", DIMS, DIMS),
            attended: linear(&attention / "output" / "dense", DIMS, DIMS),
            attended_norm: layer_norm(&attention / "output" / "LayerNorm"),
            inner: linear(&path / "intermediate" / "dense", DIMS, INNER_DIMS),
            outer: linear(&path / "output" / "dense", INNER_DIMS, DIMS),
            outer_norm: layer_norm(&path / "output" / "LayerNorm"),
        }
    }

    /// `unseen` is `[batch, 1, 1, tokens]`: true for the tokens that are masked.
    fn forward(&self, states: &Tensor, unseen: &Tensor) -> Tensor {
        let heads = |of: &nn::Linear| of.forward(states).unflatten(-1, [HEADS, DIMS / HEADS]).transpose(1, 2);
        let scores = heads(&self.query).matmul(&heads(&self.key).transpose(-2, -1)) / ((DIMS / HEADS) as f64).sqrt();
        let weights = scores.masked_fill(unseen, f64::NEG_INFINITY).softmax(-1, Kind::Float);
        let attended = weights.matmul(&heads(&self.value)).transpose(1, 2).flatten(2, 3);
        let states = self.attended_norm.forward(&(self.attended.forward(&attended) + states));
        let inner = self.inner.forward(&states).gelu("none");
        self.outer_norm.forward(&(self.outer.forward(&inner) + states))
    }
}

/// The encoder: token ids in, one embedding for each sentence out.
#[derive(Debug)]
pub struct Encoder {
    /// The frozen weights, under their names in `model.safetensors` (without `embeddings.position_ids` and the two
    /// weights of `pooler`, as mean pooling needs neither).
    pub variables: nn::VarStore,
    words: nn::Embedding,
    positions: nn::Embedding,
    segments: nn::Embedding,
    norm: nn::LayerNorm,
    layers: Vec<Layer>,
}

impl Encoder {
    /// Loads the weights from `model.safetensors` in `folder`, and freezes them.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, lacks a weight, or has a weight of another shape.
    pub fn load(folder: &Path, device: Device) -> Fallible<Encoder> {
        let mut variables = nn::VarStore::new(device);
        let root = variables.root();
        let embeddings = &root / "embeddings";
        let words = embedding(&embeddings / "word_embeddings", VOCABULARY);
        let positions = embedding(&embeddings / "position_embeddings", POSITIONS);
        let segments = embedding(&embeddings / "token_type_embeddings", SEGMENTS);
        let norm = layer_norm(&embeddings / "LayerNorm");
        let layers = (0..LAYERS).map(|layer| Layer::new(&root / "encoder" / "layer" / layer)).collect();
        variables.load(folder.join("model.safetensors"))?;
        variables.freeze();
        Ok(Encoder { variables, words, positions, segments, norm, layers })
    }

    /// The sentences' embeddings, `[batch, 384]` in f32 and of length 1, from their `token_ids` and their
    /// `attention_mask` (1 for a token, 0 for padding), both `[batch, tokens]` in i64.
    ///
    /// # Panics
    ///
    /// Like the modules of `tch`: if libtorch refuses a tensor's shape, kind or device.
    pub fn forward(&self, token_ids: &Tensor, attention_mask: &Tensor) -> Tensor {
        no_grad(|| {
            let tokens = token_ids.size().last().copied().unwrap_or_default();
            let places = self.positions.ws.i(..tokens) + self.segments.ws.i(0);
            let unseen = attention_mask.eq(0).unsqueeze(1).unsqueeze(1);
            let embedded = self.norm.forward(&(self.words.forward(token_ids) + places));
            let states = self.layers.iter().fold(embedded, |states, layer| layer.forward(&states, &unseen));
            let mask = attention_mask.to_kind(Kind::Float).unsqueeze(-1);
            let count = mask.sum_dim_intlist([1].as_slice(), false, Kind::Float).clamp_min(1e-9);
            let mean = (states * mask).sum_dim_intlist([1].as_slice(), false, Kind::Float) / count;
            &mean / mean.norm_scalaropt_dim(2, [1].as_slice(), true).clamp_min(1e-12)
        })
    }
}

/// The tokenizer: sentences in, token ids of one fixed length out.
#[derive(Debug)]
pub struct Sentences {
    tokenizer: Tokenizer,
    tokens: usize,
}

impl Sentences {
    /// Loads `tokenizer.json` from `folder`, to truncate and pad every sentence to `tokens` tokens.
    ///
    /// The length does not depend on the batch; otherwise a sentence's embedding would depend on the other sentences.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or `tokens` is too small for a word.
    pub fn load(folder: &Path, tokens: usize) -> Fallible<Sentences> {
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
        tokenizer.with_truncation(Some(TruncationParams { max_length: tokens, ..Default::default() }))?;
        let strategy = PaddingStrategy::Fixed(tokens);
        tokenizer.with_padding(Some(PaddingParams { strategy, ..Default::default() }));
        Ok(Sentences { tokenizer, tokens })
    }

    /// The token ids and the attention mask of the sentences, both `[batch, tokens]` in i64 and on the CPU.
    ///
    /// # Errors
    ///
    /// If the tokenizer fails.
    pub fn encode(&self, sentences: &[&str]) -> Fallible<(Tensor, Tensor)> {
        let encodings = self.tokenizer.encode_batch(sentences.to_vec(), true)?;
        let shape = [sentences.len() as i64, self.tokens as i64];
        let ids: Vec<i64> = encodings.iter().flat_map(|each| each.get_ids()).map(|&id| id.into()).collect();
        let mask: Vec<i64> = encodings.iter().flat_map(|each| each.get_attention_mask()).map(|&on| on.into()).collect();
        Ok((Tensor::from_slice(&ids).f_view(shape)?, Tensor::from_slice(&mask).f_view(shape)?))
    }
}
