"""Hidden states on disk: the encoder's own numbers, whatever happened to the run that wrote them."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import hidden
from lightning_maxmargin.text.hidden import batches_by_length, cached_hidden, padded_ids
from lightning_maxmargin.text.pretrained import PretrainedEncoder, pretrained_encoder

TEXTS = [f"{'very ' * (i % 5)}{word} film" for i, word in enumerate(("good", "bad", "fine", "dull", "warm") * 4)]


@pytest.fixture
def encoder(word_encoder: Path) -> PretrainedEncoder:
    return pretrained_encoder(str(word_encoder))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The texts that are encoded, with a note every four of them."""
    texts: list[int] = []
    own = hidden.hidden_states

    def counting(network: Any, encoder: Any, pieces: Any, part: Any, device: Any) -> Any:
        texts.extend(part)
        return own(network, encoder, pieces, part, device)

    monkeypatch.setattr(hidden, "hidden_states", counting)
    monkeypatch.setattr(hidden, "TEXTS_A_NOTE", 4)
    return texts


def cached(encoder: PretrainedEncoder, folder: Path, layers: Any = (1, 3), texts: list[str] = TEXTS) -> Any:
    return cached_hidden(encoder, texts, encoder.pieces(texts), layers, folder)


def numbers(states: Any) -> list[Any]:
    return [np.array(states.layers[layer]) for layer in states.layers]


def test_it_holds_what_the_encoder_gives_in_float16(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    found = cached(encoder, tmp_path, range(4))
    network = encoder.model(3)
    for i in range(len(TEXTS)):
        ids, mask = padded_ids(found.pieces, [i])  # alone: no padding
        with torch.no_grad():
            states = network(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for layer in range(4):
            (row,) = found.rows(layer, [i])
            torch.testing.assert_close(row, states[layer][0], rtol=1e-3, atol=1e-5)
    for layer in range(4):
        (file,) = tmp_path.glob(f"*/layer-{layer}.f16")
        assert file.stat().st_size == 2 * encoder.dim * len(found.pieces.ids)


def test_what_is_cached_is_not_encoded_again(encoder: PretrainedEncoder, tmp_path: Path, encoded: list[int]) -> None:
    first = numbers(cached(encoder, tmp_path))
    assert sorted(encoded) == list(range(20))
    assert all(map(np.array_equal, first, numbers(cached(encoder, tmp_path))))
    cached(encoder, tmp_path, [3])
    assert len(encoded) == 20
    cached(encoder, tmp_path, [1, 2])
    assert len(encoded) == 40


@pytest.mark.parametrize("stopped_at", [0, 3, 4, 9, 19])
def test_an_interrupted_run_goes_on(
    encoder: PretrainedEncoder, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    wanted = numbers(cached(encoder, tmp_path / "whole"))
    encoded.clear()
    counting = hidden.hidden_states

    def interrupted(*args: Any) -> Any:
        if len(encoded) >= stopped_at:
            raise KeyboardInterrupt
        return counting(*args)

    monkeypatch.setattr(hidden, "hidden_states", interrupted)
    monkeypatch.setattr(hidden, "CPU_PIECES", 1)  # a text at a time
    with pytest.raises(KeyboardInterrupt):
        cached(encoder, tmp_path)
    monkeypatch.setattr(hidden, "hidden_states", counting)
    encoded.clear()
    monkeypatch.setattr(hidden, "CPU_PIECES", 2_048)
    found = numbers(cached(encoder, tmp_path))
    assert sorted(encoded) == list(range(stopped_at // 4 * 4, 20))
    for a, b in zip(found, wanted, strict=True):  # batches of one and of several round differently in float32
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


def test_an_interrupted_run_ends_with_the_same_bytes(
    encoder: PretrainedEncoder, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = numbers(cached(encoder, tmp_path / "whole"))
    own, notes = hidden.LayerFile.note, []

    def killed(file: Any, texts: int, checksum: int) -> None:
        notes.append(texts)
        if len(notes) == 6:  # between the notes of both layers
            raise KeyboardInterrupt
        own(file, texts, checksum)

    with monkeypatch.context() as patch:
        patch.setattr(hidden.LayerFile, "note", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(encoder, tmp_path)
    encoded.clear()
    assert all(map(np.array_equal, numbers(cached(encoder, tmp_path)), wanted))
    assert sorted(encoded) == list(range(8, 20))


@pytest.mark.parametrize("change", ["weights", "texts", "length", "version", "tokenizer"])
def test_it_is_keyed_by_all_it_depends_on(
    word_encoder: Path, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(word_encoder, tmp_path / "encoder")
    encoder = pretrained_encoder(str(folder))
    cached_hidden(encoder, TEXTS, encoder.pieces(TEXTS), [1], tmp_path)
    texts, length = TEXTS, None
    if change == "weights":
        weights = load_file(folder / "model.safetensors")
        weights["embeddings.LayerNorm.bias"] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        encoder = pretrained_encoder(str(folder))
    if change == "tokenizer":
        # As many pieces of each text, with other numbers.
        file = folder / "tokenizer.json"
        told = json.loads(file.read_text())
        words = told["model"]["vocab"]
        words["good"], words["bad"] = words["bad"], words["good"]
        file.write_text(json.dumps(told))
        encoder = pretrained_encoder(str(folder))
    if change == "texts":
        texts = [*TEXTS[:-1], "zzz film"]
    if change == "length":
        length = 4
    if change == "version":
        monkeypatch.setattr(hidden, "HIDDEN_VERSION", -1)
    cached_hidden(encoder, texts, encoder.pieces(texts, length), [1], tmp_path)
    assert len(encoded) == 40
    assert len(list(tmp_path.glob("hidden-*"))) == 2


@pytest.mark.parametrize("damage", ["number", "truncated", "longer", "gone", "note", "no note", "note of another kind"])
def test_a_damaged_file_is_computed_again(
    encoder: PretrainedEncoder, tmp_path: Path, encoded: list[int], damage: str
) -> None:
    wanted = numbers(cached(encoder, tmp_path))
    (file,), (note,) = tmp_path.glob("*/layer-1.f16"), tmp_path.glob("*/layer-1.json")
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    if damage in ("number", "truncated", "longer"):
        file.write_bytes({"number": raw, "truncated": raw[:-7], "longer": raw + b"more"}[damage])
    if damage == "gone":
        file.unlink()
    if damage == "note":
        note.write_text('{"texts": 20')
    if damage == "no note":
        note.unlink()
    if damage == "note of another kind":
        note.write_text(json.dumps({"texts": 21, "crc32": 0}))
    for _ in range(2):
        assert all(map(np.array_equal, numbers(cached(encoder, tmp_path)), wanted))
    assert len(encoded) == 40


def _encode_in(folder: Path, encoder: PretrainedEncoder, log: Path) -> None:
    own = hidden.hidden_states

    def counting(network: Any, encoder: Any, pieces: Any, part: Any, device: Any) -> Any:
        with log.open("a") as file:
            file.write("".join(f"{i}\n" for i in part))
        return own(network, encoder, pieces, part, device)

    hidden.hidden_states = counting
    hidden.TEXTS_A_NOTE = 4
    cached(encoder, folder)


def test_processes_that_race_encode_once(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    encoder.pieces(TEXTS)
    fork, log = multiprocessing.get_context("fork"), tmp_path / "log"
    processes = [fork.Process(target=_encode_in, args=(tmp_path / "cache", encoder, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(20))
    wanted = numbers(cached(encoder, tmp_path / "alone"))
    assert all(map(np.array_equal, numbers(cached(encoder, tmp_path / "cache")), wanted))


@pytest.mark.parametrize("layers", [[-1], [4], [0, 7]])
def test_a_layer_that_is_not_there_is_named(encoder: PretrainedEncoder, tmp_path: Path, layers: list[int]) -> None:
    with pytest.raises(InputError, match="has layers 0 to 3"):
        cached(encoder, tmp_path, layers)


def test_a_folder_that_cannot_be_written_is_told_in_a_line(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); name another with --data.cache_dir$"):
        cached(encoder, tmp_path / "file" / "cache")


def test_a_full_disk_is_told_in_a_line(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hidden.os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        cached(encoder, tmp_path)


def test_a_complete_cache_is_read_without_writing(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = numbers(cached(encoder, tmp_path))

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hidden, "FileLock", refused)
    monkeypatch.setattr(Path, "mkdir", refused)
    assert all(map(np.array_equal, numbers(cached(encoder, tmp_path)), wanted))


def test_no_texts_and_empty_ones(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    assert len(cached(encoder, tmp_path, texts=[]).layers[1]) == 0
    found = cached(encoder, tmp_path, texts=["", "good"])
    assert [len(x) for x in found.rows(1, [0, 1])] == [2, 3]


def test_a_number_beyond_float16_is_cut(encoder: PretrainedEncoder, tmp_path: Path, encoded: list[int],
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    counting = hidden.hidden_states
    monkeypatch.setattr(hidden, "hidden_states", lambda *args: [1e6 * torch.ones_like(x) for x in counting(*args)])
    assert all(np.array_equal(x, np.full_like(x, 65504.0)) for x in numbers(cached(encoder, tmp_path)))


def test_batches_hold_texts_of_like_length(encoder: PretrainedEncoder) -> None:
    pieces = encoder.pieces(TEXTS)
    parts = list(batches_by_length(pieces, range(20), 30))
    assert sorted(i for part in parts for i in part) == list(range(20))
    lengths = np.diff(pieces.starts)
    assert all(len(part) * max(lengths[part]) <= 30 for part in parts)
    assert max(map(len, batches_by_length(pieces, range(20), 1))) == 1


def test_weights_in_half_precision_are_read_as_float32(word_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = shutil.copytree(word_encoder, tmp_path / "half")
    AutoModel.from_pretrained(word_encoder).half().save_pretrained(folder)
    network = pretrained_encoder(str(folder)).model(2)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
