"""A user's own arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.errors import InputError

REQUIRED_ARRAYS = ("keys", "labels")
ALLOWED_ARRAYS = (*REQUIRED_ARRAYS, "values", "queries", "mask", "planted", "instance")
INTEGER_ARRAYS = ("planted", "instance")


class TensorData(SequenceData):
    """Arrays from .npz or .safetensors files.

    A file holds ``keys`` (n, T, d) and ``labels`` (n,), and may hold ``values`` (n, T, dv), ``queries`` (n, dq),
    ``mask`` (n, T), true at real tokens, ``planted`` (n,), the token known to carry the label, and ``instance`` (n,),
    the number of the problem that a sequence belongs to, for :class:`Ensemble`. Labels are -1 and 1, or class indices
    when ``num_classes`` is more than 2.

    Args:
        path: the training file.
        val_path: a file of the same form, for validation.
        test_path: likewise, for the test.
        num_classes: 2 for labels in {-1, 1}.
        batch_size: as in :class:`SequenceData`.
        shuffle: as in :class:`SequenceData`.
        seed: as in :class:`SequenceData`.

    Raises:
        InputError: no such file, an unknown format or array, and whatever :func:`check_sequences` refuses.
    """

    def __init__(
        self,
        path: str,
        val_path: str | None = None,
        test_path: str | None = None,
        num_classes: int = 2,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, shuffle, seed)
        self.num_classes = num_classes
        self._paths = {k: p for k, p in (("train", path), ("val", val_path), ("test", test_path)) if p is not None}
        self.splits  # noqa: B018  read and checked now, so that bad input is refused before any work

    def load(self) -> dict[str, Sequences]:
        return {split: read_arrays(Path(path), self.num_classes) for split, path in self._paths.items()}


def read_arrays(path: Path, num_classes: int = 2) -> Sequences:
    """The sequences of one file.

    Raises:
        InputError: the file cannot be read, or lacks or has an array that is not expected.
    """
    arrays = _read(path)
    missing = [k for k in REQUIRED_ARRAYS if k not in arrays]
    if missing:
        raise InputError(f"{path}: no array {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    unknown = [k for k in arrays if k not in ALLOWED_ARRAYS]
    if unknown:
        raise InputError(f"{path}: unknown array {unknown[0]!r}; {', '.join(ALLOWED_ARRAYS)} are read")
    odd = [k for k, t in arrays.items() if t.is_complex()]
    if odd:
        raise InputError(f"{path}: array {odd[0]!r} is complex; expected real numbers")
    labels = arrays.pop("labels")
    if num_classes == 2:
        labels = labels.to(torch.float64)
    elif not labels.is_floating_point() or bool((labels == labels.round()).all()):
        labels = labels.to(torch.int64)
    if "mask" in arrays:
        arrays["mask"] = arrays["mask"].to(torch.bool)
    arrays |= {k: arrays[k].to(torch.int64) for k in INTEGER_ARRAYS if k in arrays}
    floats = {
        k: t if t.is_floating_point() or k in ("mask", *INTEGER_ARRAYS) else t.double() for k, t in arrays.items()
    }
    return Sequences(labels=labels, **floats)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give data.path a .npz or .safetensors file")
    try:
        if path.suffix == ".npz":
            # allow_pickle stays False: an object array could run code.
            with np.load(path) as arrays:
                return {k: torch.from_numpy(arrays[k]) for k in arrays.files}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({error}); is the file whole?") from error
    raise InputError(f"{path}: unknown format {path.suffix!r}; .npz and .safetensors are read")
