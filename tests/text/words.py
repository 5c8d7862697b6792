"""A tiny encoder on disk: two layers of BERT with a vocabulary of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = (
    "a the film movie story plot is was it and not very so too good fine great charming warm funny bad dull poor awful "
)
WORDS += "cold slow in with for one two three day night . , ! ?"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer() -> Any:
    """A fast tokenizer of whole words: [CLS] text [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS.split()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **dict(zip(names, SPECIAL, strict=True))
    )


def save_encoder(folder: Path, config: Any, tokenizer: Any = None) -> Path:
    """A random network of this configuration and a tokenizer, as ``save_pretrained`` writes them."""
    from transformers import AutoModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def word_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a BERT of 3 layers and 16 dimensions."""
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS.split()), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    return save_encoder(tmp_path_factory.mktemp("tiny"), config)
