"""Hidden states of a frozen encoder: a memory-mapped float16 file a layer, computed once, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm import tqdm

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.atomic import write_text
from lightning_maxmargin.text.cache import cache_folder
from lightning_maxmargin.text.pretrained import Pieces, PretrainedEncoder

HIDDEN_VERSION = 1  # raised whenever the same text would get other hidden states
#: Texts between two notes of what is done: an interrupted run loses these at most.
TEXTS_A_NOTE = 256
#: Pieces encoded at once: on a CPU more fall out of its cache, a GPU is idle with fewer.
CPU_PIECES, GPU_PIECES = 2_048, 65_536
#: The largest float16; a hidden state beyond it is cut.
LARGEST_HALF = float(np.finfo(np.float16).max)

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class HiddenStates:
    """Hidden states of all pieces of some texts: ``layers[l]`` is (N, d) float16 on disk, rows as in ``pieces``."""

    layers: Mapping[int, Half]
    pieces: Pieces

    def rows(self, layer: int, texts: Sequence[int]) -> list[Tensor]:
        """The (T_i, d) float32 hidden states of these texts."""
        states = self.layers[layer]
        return [torch.from_numpy(states[self.pieces.of(i)].astype(np.float32)) for i in texts]


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
    d = 384). What is done is noted every :data:`TEXTS_A_NOTE` texts, and a run that was interrupted goes on from there.

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
    wanted = sorted(set(layers))
    if wanted and not 0 <= wanted[0] <= wanted[-1] <= encoder.depth:
        raise InputError(f"data: layers {wanted}; {encoder.name} has layers 0 to {encoder.depth}")
    folder = cache_folder(cache_dir) / f"hidden-{_key(encoder, texts, pieces)}"
    shape = (int(pieces.starts[-1]), encoder.dim)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            missing = [layer for layer in wanted if _done(folder, layer) < len(pieces)]
            if missing:
                _encode(encoder, pieces, missing, folder, shape, torch.device(device))
        return HiddenStates({layer: _open(folder, layer, shape, "r") for layer in wanted}, pieces)
    except OSError as error:
        raise InputError(
            f"data.cache_dir: {folder} cannot be written ({error.strerror}); name another with --data.cache_dir"
        ) from error


def _encode(
    encoder: PretrainedEncoder, pieces: Pieces, layers: list[int], folder: Path, shape: tuple[int, int],
    device: torch.device,
) -> None:  # fmt: skip
    """Fills the files of these layers from the first text that one of them lacks."""
    done = min(_done(folder, layer) for layer in layers)
    network = encoder.model(max(layers)).to(device)
    files = {layer: _open(folder, layer, shape, "r+" if _path(folder, layer).exists() else "w+") for layer in layers}
    bar = tqdm(total=shape[0], initial=int(pieces.starts[done]), desc="encoding", unit="pieces", unit_scale=True,
               delay=2.0, leave=False)  # fmt: skip
    with bar, torch.inference_mode():
        for start in range(done, len(pieces), TEXTS_A_NOTE):
            texts = range(start, min(start + TEXTS_A_NOTE, len(pieces)))
            for part in batches_by_length(pieces, texts, CPU_PIECES if device.type == "cpu" else GPU_PIECES):
                states = _hidden(network, encoder, pieces, part, device)
                for layer, file in files.items():
                    _store(file, states[layer], pieces, part)
                bar.update(sum(int(pieces.starts[i + 1] - pieces.starts[i]) for i in part))
            for layer, file in files.items():
                file.flush()  # type: ignore[attr-defined]
                write_text(folder / f"layer-{layer}.json", json.dumps({"texts": texts[-1] + 1}))


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


def _hidden(
    network: nn.Module, encoder: PretrainedEncoder, pieces: Pieces, texts: Sequence[int], device: torch.device
) -> Any:
    ids, mask = padded_ids(pieces, texts, encoder.tokenizer.pad_token_id or 0)
    return network(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True).hidden_states


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


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer}.f16"


def _open(folder: Path, layer: int, shape: tuple[int, int], mode: Any) -> Half:
    if not shape[0]:
        return np.zeros(shape, np.float16)
    return np.memmap(_path(folder, layer), np.float16, mode, shape=shape)


def _done(folder: Path, layer: int) -> int:
    """How many texts of this layer are on disk; 0 where the file is absent or of another size."""
    try:
        done = int(json.loads((folder / f"layer-{layer}.json").read_text(encoding="utf-8"))["texts"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return done if _path(folder, layer).is_file() else 0
