"""Sentence vectors on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from lightning_maxmargin.text import Encoder, cache
from lightning_maxmargin.text.cache import cache_folder, cached_vectors

SENTENCES = ["a film of rare charm", "dull .", "shares rose by 1.5% on friday"]


class Counting:
    """An encoder of one's own: vectors are numbers made up from the lengths; it counts what it is asked for."""

    identity = "counting"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def encode(self, sentences: Sequence[str]) -> torch.Tensor:
        self.calls.append(len(sentences))
        return torch.tensor([[float(len(s)), 1.0] for s in sentences])


@pytest.fixture
def encoder() -> Counting:
    found = Counting()
    assert isinstance(found, Encoder)
    return found


def test_the_cache_is_read_back_exactly(tmp_path: Path, encoder: Counting) -> None:
    first = cached_vectors(encoder, SENTENCES, tmp_path)
    again = cached_vectors(encoder, SENTENCES, tmp_path)
    assert torch.equal(first, again)
    assert encoder.calls == [3]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["sentences", "encoder", "version"])
def test_the_cache_is_keyed_by_all_it_depends_on(
    tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    cached_vectors(encoder, SENTENCES, tmp_path)
    if change == "encoder":
        monkeypatch.setattr(encoder, "identity", "another")
    if change == "version":
        monkeypatch.setattr(cache, "FEATURE_VERSION", -1)
    cached_vectors(encoder, SENTENCES[::-1] if change == "sentences" else SENTENCES, tmp_path)
    assert encoder.calls == [3, 3]


def test_sentences_that_join_to_the_same_text_do_not_share_a_file(tmp_path: Path, encoder: Counting) -> None:
    for sentences in (["good\0bad", "film"], ["good", "bad\0film"], ["\ud800", "film"]):
        cached_vectors(encoder, sentences, tmp_path)
    assert encoder.calls == [2, 2, 2]


@pytest.mark.parametrize("damage", ["number", "truncated", "empty", "other rows"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, encoder: Counting, damage: str) -> None:
    wanted = cached_vectors(encoder, SENTENCES, tmp_path)
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    if damage == "number":
        raw[-5] ^= 1
    if damage == "other rows":
        cache._write(path, wanted[:2])
    else:
        path.write_bytes(raw[: {"number": len(raw), "truncated": len(raw) // 2, "empty": 0}[damage]])
    for _ in range(2):
        assert torch.equal(cached_vectors(encoder, SENTENCES, tmp_path), wanted)
    assert encoder.calls == [3, 3]


def test_racing_writers_leave_one_good_file(tmp_path: Path) -> None:
    path, vectors = tmp_path / "v.safetensors", torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    threads = [Thread(target=cache._write, args=(path, vectors)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]
    read = cache._read(path, 500)
    assert read is not None
    assert torch.equal(read, vectors)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, encoder: Counting) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        vectors = cached_vectors(encoder, SENTENCES, tmp_path / "file" / "cache")
    assert len(vectors) == 3
    assert encoder.calls == [3]


def test_nor_does_a_full_disk_end_anything(tmp_path: Path, encoder: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.warns(UserWarning, match=r"cannot be written \(No space left on device\)"):
        assert len(cached_vectors(encoder, SENTENCES, tmp_path)) == 3
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_is_chosen_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAXMARGIN_CACHE", str(tmp_path / "variable"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "variable"
    monkeypatch.delenv("MAXMARGIN_CACHE")
    assert "lightning_maxmargin" in str(cache_folder())
