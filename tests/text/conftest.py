"""A tiny encoder with random weights, and finished runs on it: seconds instead of minutes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.text.words import word_encoder  # noqa: F401  (a fixture)

GOOD, BAD = ("good", "fine", "great", "charming", "witty", "warm"), ("bad", "dull", "poor", "tired", "silly", "cold")
PLAIN = (
    "a", "the", "of", "and", "but", "with", "this", "that", "film", "plot", "cast", "scene", "story", "music",
    "end", "first", "last", "hour", "director", "camera", "script", "actor", "city", "night", "road",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 3 layers, 32 dimensions and about 50 words with random weights, in a directory of Hugging Face's."""
    if find_spec("transformers") is None:
        pytest.skip("the text extra is missing: transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: k for k, word in enumerate([*special, *GOOD, *BAD, *PLAIN, ".", ",", "!", "'", "un", "##able"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.3, **shape)
    BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
    return folder


def reviews(n: int, seed: int) -> list[dict[str, Any]]:
    """Documents of which one word decides, and says so in ``rationale``; ``pair`` are neighbours that differ in it."""
    draw, rows = random.Random(seed), []
    for pair in range(n // 2):
        around = draw.choices(PLAIN, k=draw.randint(3, 9))
        at = draw.randint(0, len(around))
        for label, words in (("good", GOOD), ("bad", BAD)):
            text = " ".join([*around[:at], draw.choice(words), *around[at:]]) + " ."
            start = len(" ".join(around[:at])) + (at > 0)
            end = text.find(" ", start)
            rows.append({"text": text, "label": label, "rationale": [[start, end]], "pair": pair})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def make_run(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the directory of a run as fit leaves it: mean pooling on the tiny encoder, with attention of this length.

    Arguments by name are those of the data; ``attention`` is the length of p, ``seed`` that of its direction and
    ``documents`` the number of training documents.
    """
    pytest.importorskip("sklearn")
    from lightning_maxmargin.text.baselines import mean_pool
    from lightning_maxmargin.text.data import TextData

    def make(attention: float = 1.0, seed: int = 0, documents: int = 80, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("run")
        train = write_rows(folder / "train.jsonl", reviews(documents, 1))
        test = write_rows(folder / "test.jsonl", reviews(40, 2))
        given = {"train": str(train), "test": str(test), "encoder": str(tiny_encoder), "cache_dir": str(folder)}
        data = TextData(**{**given, **settings})
        data.setup("fit")
        model = mean_pool(data, 8.0)
        generator = torch.Generator().manual_seed(seed)
        selector: Any = model.selectors[0]
        selector.p.copy_(attention * torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0))
        model.config.units = data.spec.units
        model.save_pretrained(folder / "model")
        data.encoder.tokenizer.save_pretrained(folder / "model")
        data_config = {"class_path": "lightning_maxmargin.TextData", "init_args": {**given, **settings}}
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0, "data": data_config}))
        return folder

    return make


@pytest.fixture(scope="session")
def finished(make_run: Callable[..., Path]) -> Path:
    """One run that several tests read and none changes."""
    return make_run()
