"""Writes minilm_reference.json: the embeddings of the first sentences of sentences.tsv, computed by all-MiniLM-L6-v2 in
numpy, in float64 and without padding. It shares no code with libtorch.

    python3 -m venv venv && venv/bin/pip install numpy safetensors tokenizers
    venv/bin/python minilm_reference.py <folder of the model> sentences.tsv minilm_reference.json
"""

import json
import math
import pathlib
import sys

import numpy
import safetensors
import tokenizers
from safetensors.numpy import load_file

SENTENCES = 16
MAX_TOKENS = 128

model, sentences_path, reference_path = map(pathlib.Path, sys.argv[1:])
config = json.loads((model / "config.json").read_text())
weights = {name: tensor.astype(numpy.float64) for name, tensor in load_file(model / "model.safetensors").items()
           if tensor.dtype == numpy.float32}
heads = config["num_attention_heads"]
erf = numpy.vectorize(math.erf, otypes=[numpy.float64])


def linear(name, states):
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(name, states):
    centred = states - states.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    scaled = centred / numpy.sqrt(variance + config["layer_norm_eps"])
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(states):
    return states * 0.5 * (1.0 + erf(states / math.sqrt(2.0)))


def attention(name, states):
    """Self-attention over one sentence, `[tokens, dims]`, in which every token attends to every other."""
    tokens, dims = states.shape
    query, key, value = (
        linear(f"{name}.self.{part}", states).reshape(tokens, heads, dims // heads).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(dims // heads)
    exponentials = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = exponentials / exponentials.sum(axis=-1, keepdims=True) @ value
    attended = linear(f"{name}.output.dense", attended.transpose(1, 0, 2).reshape(tokens, dims))
    return layer_norm(f"{name}.output.LayerNorm", attended + states)


def embed(ids):
    states = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    states = layer_norm("embeddings.LayerNorm", states)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        states = attention(f"{name}.attention", states)
        inner = gelu(linear(f"{name}.intermediate.dense", states))
        states = layer_norm(f"{name}.output.LayerNorm", linear(f"{name}.output.dense", inner) + states)
    mean = states.mean(axis=0)
    return mean / numpy.linalg.norm(mean)


tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(MAX_TOKENS)
lines = sentences_path.read_text().splitlines()[:SENTENCES]
sentences = [line.split("\t")[1] for line in lines]
embeddings = [embed(tokenizer.encode(sentence).ids) for sentence in sentences]
origin = (
    f"minilm_reference.py: all-MiniLM-L6-v2 in numpy {numpy.__version__}, float64, no padding; "
    f"safetensors {safetensors.__version__}, tokenizers {tokenizers.__version__}"
)
rows = [[float(f"{value:.8f}") for value in embedding] for embedding in embeddings]
with open(reference_path, "w") as reference:
    reference.write(f'{{"origin": {json.dumps(origin)},\n"sentences": ')
    reference.write(json.dumps(sentences, indent=0))
    reference.write(',\n"embeddings": [\n')
    reference.write(",\n".join(json.dumps(row) for row in rows))
    reference.write("\n]}\n")
