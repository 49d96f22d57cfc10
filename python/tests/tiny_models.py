"""Small models with random weights, made without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = "a frozen model reads the words of every sentence once and keeps what it found for later epochs".split()


def tokenizer() -> Any:
    """A tokenizer that knows ``WORDS``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(seed: int = 0) -> Any:
    """A ``BertModel`` of two layers of 16 dimensions, in evaluation mode."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=4 + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    return BertModel(config).eval()


def sentence_transformer(folder: Path, **arguments: Any) -> Any:
    """A ``SentenceTransformer`` of ``bert`` with mean pooling, loaded from ``folder``."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    if not (folder / "config.json").exists():
        bert().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    transformer = Transformer(str(folder))
    transformer.max_seq_length = 24
    return SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu", **arguments)


def sentences(count: int) -> list[str]:
    """Different sentences of 1 to 17 words."""
    return [" ".join(WORDS[(number * 7 + at * (1 + number % 3)) % 17] for at in range(1 + number % 17)) + f" {number}"
            for number in range(count)]  # fmt: skip
