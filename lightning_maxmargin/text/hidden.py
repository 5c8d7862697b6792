"""Hidden states of a frozen encoder: a memory-mapped float16 file a layer, computed once, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor, nn

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.cache import cache_folder
from lightning_maxmargin.text.pretrained import Pieces, PretrainedEncoder

HIDDEN_VERSION = 1  # raised whenever the same text would get other hidden states
#: Texts between two notes of what is done: an interrupted run loses these at most.
TEXTS_A_NOTE = 256
#: Pieces encoded at once: on a CPU more fall out of its cache, a GPU is idle with fewer.
CPU_PIECES, GPU_PIECES = 2_048, 65_536
#: Bytes read of a file after which its pages are let go; a read may map pages of 2 MB around it: 10,000 documents read
#: in random order hold 250 MB then, with four times as many bytes 520.
MAPPED_BYTES = 1 << 22
#: The largest float16; a hidden state beyond it is cut.
LARGEST_HALF = float(np.finfo(np.float16).max)

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of all pieces of some texts: ``layers[l]`` is (N, d) float16 on disk, rows as in ``pieces``.

    ``chosen`` are the numbers of those texts that these are the states of; all where None.
    """

    layers: Mapping[int, Half]
    pieces: Pieces
    chosen: Sequence[int] | None = None
    _unreleased: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, layer: int, texts: Sequence[int]) -> list[Tensor]:
        """The (T_i, d) float32 hidden states of these texts."""
        states = self.layers[layer]
        places = texts if self.chosen is None else [self.chosen[i] for i in texts]
        found = [torch.from_numpy(states[self.pieces.of(i)]).float() for i in places]
        self._unreleased[layer] = self._unreleased.get(layer, 0) + sum(x.numel() * states.itemsize for x in found)
        if self._unreleased[layer] > MAPPED_BYTES:
            self._unreleased[layer] = 0
            _release(states)
        return found


def _release(states: Half) -> None:
    """Lets mapped pages go, which stay in the system's cache: a file's would all count as memory of this process."""
    mapped = getattr(states, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def cached_hidden(
    encoder: PretrainedEncoder,
    texts: Sequence[str],
    pieces: Pieces,
    layers: Iterable[int],
    cache_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> HiddenStates:
    """Hidden states of these layers, encoded where they are not on disk yet.

    A file is named after a checksum of weights, tokenizer, pieces and texts; 2 d bytes a piece and layer (768 for
    d = 384). What is done is noted with its checksum every :data:`TEXTS_A_NOTE` texts: a run that was interrupted goes
    on from there, a file that fails it is computed again. A complete cache is read without being written to.

    Args:
        encoder: of the texts.
        texts: whose pieces these are.
        pieces: ``encoder.pieces(texts, max_length)``.
        layers: from 0 (the embeddings) to ``encoder.depth``.
        cache_dir: the folder; else ``MAXMARGIN_CACHE``, else the user's cache folder.
        device: where the encoder runs.

    Raises:
        InputError: a layer that the encoder does not have, or a folder that cannot be written.
    """
    wanted = _known(encoder, layers)
    folder = cache_folder(cache_dir) / f"hidden-{_key(encoder, texts, pieces)}"
    if not int(pieces.starts[-1]):
        return HiddenStates({layer: np.zeros((0, encoder.dim), np.float16) for layer in wanted}, pieces)
    files = {layer: LayerFile(folder, layer, pieces, encoder.dim) for layer in wanted}
    try:
        missing = [file for file in files.values() if file.done() < len(pieces)]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                done = [(file.done(), file) for file in missing]  # another process may have been here first
                _encode(encoder, pieces, [x for x in done if x[0] < len(pieces)], torch.device(device))
        # Writable for torch's sake, to pages of this process alone.
        return HiddenStates({layer: file.open("c") for layer, file in files.items()}, pieces)
    except OSError as error:
        raise InputError(
            f"data.cache_dir: {folder} cannot be written ({error.strerror or error}); "
            "name another with --data.cache_dir"
        ) from error


def _known(encoder: PretrainedEncoder, layers: Iterable[int]) -> list[int]:
    wanted = sorted(set(layers))
    if wanted and not 0 <= wanted[0] <= wanted[-1] <= encoder.depth:
        raise InputError(f"data: layers {wanted}; {encoder.name} has layers 0 to {encoder.depth}")
    return wanted


@dataclass(frozen=True, eq=False)
class LayerFile:
    """One layer's hidden states on disk, and the note of how many texts are there with the checksum of these.

    Attributes:
        folder: of the texts.
        layer: of the encoder.
        pieces: of the texts.
        dim: of a hidden state.
    """

    folder: Path
    layer: int
    pieces: Pieces
    dim: int

    @property
    def path(self) -> Path:
        """Of the numbers."""
        return self.folder / f"layer-{self.layer}.f16"

    @property
    def note_path(self) -> Path:
        """Of the note."""
        return self.folder / f"layer-{self.layer}.json"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)"""
        return int(self.pieces.starts[-1]), self.dim

    def open(self, mode: Literal["r", "r+", "c"]) -> Half:
        """(N, d) float16, mapped."""
        return np.memmap(self.path, np.float16, mode, shape=self.shape)

    def done(self) -> int:
        """How many texts are on disk; 0 where the file is absent, of another size, or not what was noted."""
        try:
            note = json.loads(self.note_path.read_text(encoding="utf-8"))
            done, expected = int(note["texts"]), int(note["crc32"])
            if not 0 <= done <= len(self.pieces) or self.path.stat().st_size != 2 * self.shape[0] * self.dim:
                return 0
            return done if self.checksum(self.open("r"), 0, done) == expected else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def checksum(self, states: Half, start: int, stop: int, before: int = 0) -> int:
        """CRC-32 of the texts from ``start`` to ``stop``, going on from that of the texts before."""
        first, last = int(self.pieces.starts[start]), int(self.pieces.starts[stop])
        step = max(1, MAPPED_BYTES // (2 * self.dim))
        for at in range(first, last, step):
            before = zlib.crc32(np.asarray(states[at : min(at + step, last)]).view(np.uint8).data, before)
            _release(states)
        return before

    def make(self) -> Half:
        """The file at its full size, to be written: on a full disk this fails, where a mapped file would crash."""
        size = 2 * self.shape[0] * self.dim
        with self.path.open("ab") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        return self.open("r+")

    def note(self, texts: int, checksum: int) -> None:
        """Notes that so many texts are on disk."""
        write_text(self.note_path, json.dumps({"texts": texts, "crc32": checksum}))


def _encode(
    encoder: PretrainedEncoder, pieces: Pieces, missing: list[tuple[int, LayerFile]], device: torch.device
) -> None:
    """Fills these files, with how many texts each has, from the first text that one of them lacks."""
    if not missing:
        return
    done = min(count for count, _ in missing)
    network = encoder.model(max(file.layer for _, file in missing)).to(device)
    files = {file: file.make() for _, file in missing}
    sums = {file: file.checksum(states, 0, done) for file, states in files.items()}
    bar = progress(
        total=int(pieces.starts[-1]), initial=int(pieces.starts[done]), desc="encoding", unit="pieces",
        unit_scale=True,
    )  # fmt: skip
    with bar, torch.inference_mode():
        for start in range(done, len(pieces), TEXTS_A_NOTE):
            texts = range(start, min(start + TEXTS_A_NOTE, len(pieces)))
            for part in batches_by_length(pieces, texts, CPU_PIECES if device.type == "cpu" else GPU_PIECES):
                found = hidden_states(network, encoder, pieces, part, device)
                for file, states in files.items():
                    _store(states, found[file.layer], pieces, part)
                bar.update(sum(int(pieces.starts[i + 1] - pieces.starts[i]) for i in part))
            for file, states in files.items():
                states.flush()  # type: ignore[attr-defined]
                sums[file] = file.checksum(states, texts.start, texts.stop, sums[file])
                file.note(texts.stop, sums[file])


def batches_by_length(pieces: Pieces, texts: Iterable[int], most: int) -> Iterator[list[int]]:
    """Texts of like length together, at most so many pieces with their padding (or one text)."""
    lengths = np.diff(pieces.starts)
    part: list[int] = []
    for i in sorted(texts, key=lambda i: (lengths[i], i)):
        if part and (len(part) + 1) * lengths[i] > most:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def padded_ids(pieces: Pieces, texts: Sequence[int], padding: int = 0) -> tuple[Tensor, Tensor]:
    """Ids (b, T) of these texts and their mask, (b, T) int64, 1 on pieces."""
    ids = [torch.from_numpy(pieces.ids[pieces.of(i)]) for i in texts]
    mask = [torch.ones_like(x) for x in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=padding), pad(mask, batch_first=True)


def hidden_states(
    network: nn.Module, encoder: PretrainedEncoder, pieces: Pieces, texts: Sequence[int], device: torch.device
) -> Any:
    """Hidden states (b, T, d) of these texts at each layer that the network has."""
    ids, mask = padded_ids(pieces, texts, encoder.tokenizer.pad_token_id or 0)
    found = network(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True).hidden_states
    if any(states.shape != (*ids.shape, encoder.dim) for states in found):
        raise InputError(
            f"data.encoder: {encoder.name} has hidden states of other shapes than its pieces; name another"
        )
    return found


def _store(file: Half, states: Tensor, pieces: Pieces, texts: Sequence[int]) -> None:
    half = states.clamp(-LARGEST_HALF, LARGEST_HALF).half().cpu().numpy()
    for row, i in enumerate(texts):
        at = pieces.of(i)
        file[at] = half[row, : at.stop - at.start]


def _key(encoder: PretrainedEncoder, texts: Sequence[str], pieces: Pieces) -> str:
    digest = hashlib.sha256(f"{encoder.identity} {HIDDEN_VERSION} {len(texts)}\0".encode())
    digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
    digest.update(pieces.ids.tobytes())
    digest.update(pieces.starts.tobytes())
    return digest.hexdigest()[:24]
