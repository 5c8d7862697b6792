"""A user's own arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.core.masks import as_mask
from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.errors import InputError

REQUIRED_ARRAYS = ("keys", "labels")
ALLOWED_ARRAYS = (*REQUIRED_ARRAYS, "values", "queries", "mask", "planted", "instance")
INTEGER_ARRAYS = ("planted", "instance")
#: Arrays that stay in their file where it is mapped; the others hold a number or a vector a sequence.
MAPPED_ARRAYS = ("keys", "values")
#: Files from this size on are mapped where the user does not say.
MAPPED_FROM_BYTES = 2**30


class TensorData(SequenceData):
    """Arrays from .npz or .safetensors files, or from a folder with a .npy file of each.

    A file holds ``keys`` (n, T, d) and ``labels`` (n,), and may hold ``values`` (n, T, dv), ``queries`` (n, dq),
    ``mask`` (n, T), true at real tokens, ``planted`` (n,), the token known to carry the label, and ``instance`` (n,),
    the number of the problem that a sequence belongs to, for :class:`Ensemble`. Labels are -1 and 1, or class indices
    when ``num_classes`` is more than 2.

    Keys and values of a mapped file are never in memory as a whole: every batch is read from it, and so is every block
    of the monitors. A compressed .npz cannot be mapped, and the checksum of a mapped one is not looked at.

    Args:
        path: the training file.
        val_path: a file of the same form, for validation.
        test_path: likewise, for the test.
        num_classes: 2 for labels in {-1, 1}.
        batch_size: as in :class:`SequenceData`.
        shuffle: as in :class:`SequenceData`.
        seed: as in :class:`SequenceData`.
        mapped: whether keys and values stay in their file; None for files of 1 GiB and more.
        num_workers: as in :class:`SequenceData`.
        prefetch: as in :class:`SequenceData`.
        pin_memory: as in :class:`SequenceData`.

    Raises:
        InputError: no such file, an unknown format or array, an array that cannot be mapped, and whatever
            :func:`check_sequences` refuses.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "keys.npy", np.eye(4, dtype="float32").reshape(2, 2, 4))
        >>> np.save(folder / "labels.npy", np.array([1, -1]))
        >>> data = TensorData(str(folder), mapped=True, batch_size=1)
        >>> data.sequences("train").mapped, data.dim
        (True, 4)
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
        mapped: bool | None = None,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, shuffle, seed, num_workers, prefetch, pin_memory)
        self.num_classes, self.mapped = num_classes, mapped
        self._paths = {k: p for k, p in (("train", path), ("val", val_path), ("test", test_path)) if p is not None}
        self.splits  # noqa: B018  read and checked now, so that bad input is refused before any work

    def load(self) -> dict[str, Sequences]:
        return {split: read_arrays(Path(path), self.num_classes, self.mapped) for split, path in self._paths.items()}


def read_arrays(path: Path, num_classes: int = 2, mapped: bool | None = False) -> Sequences:
    """The sequences of one file or folder.

    Args:
        path: of the file.
        num_classes: 2 for labels in {-1, 1}.
        mapped: whether keys and values stay in the file; None where it is large.

    Raises:
        InputError: the file cannot be read, or lacks or has an array that is not expected or cannot be mapped.
    """
    if mapped is None:
        mapped = _size(path) >= MAPPED_FROM_BYTES and not _is_compressed(path)
    arrays = _read(path, mapped)
    missing = [k for k in REQUIRED_ARRAYS if k not in arrays]
    if missing:
        raise InputError(f"{path}: no array {missing[0]!r}; it holds {', '.join(arrays) or 'nothing'}")
    unknown = [k for k in arrays if k not in ALLOWED_ARRAYS]
    if unknown:
        raise InputError(f"{path}: unknown array {unknown[0]!r}; {', '.join(ALLOWED_ARRAYS)} are read")
    odd = [k for k, t in arrays.items() if t.is_complex()]
    if odd:
        raise InputError(f"{path}: array {odd[0]!r} is complex; expected real numbers")
    whole = [k for k in MAPPED_ARRAYS if k in arrays and not arrays[k].is_floating_point()] if mapped else []
    if whole:
        kind = str(arrays[whole[0]].dtype).removeprefix("torch.")
        raise InputError(
            f"{path}: {whole[0]} are {kind} and stay in their file; store them as float32, or mapped: false"
        )
    labels = arrays.pop("labels")
    if num_classes == 2:
        labels = labels.to(torch.float64)
    elif not labels.is_floating_point() or bool((labels == labels.round()).all()):
        labels = labels.to(torch.int64)
    if "mask" in arrays:
        arrays["mask"] = as_mask(arrays["mask"], f"{path}: mask")
    arrays |= {k: _whole_numbers(arrays[k], f"{path}: {k}") for k in INTEGER_ARRAYS if k in arrays}
    floats = {
        k: t if t.is_floating_point() or k in ("mask", *INTEGER_ARRAYS) else t.double() for k, t in arrays.items()
    }
    return Sequences(labels=labels, mapped=mapped, **floats)


def _whole_numbers(x: Tensor, name: str) -> Tensor:
    numbers = x.to(torch.int64)
    odd = numbers.to(x.dtype) != x
    if odd.any():
        at = odd.nonzero()[0].tolist()
        raise InputError(f"{name} holds {x[tuple(at)].item()} at {at}; expected whole numbers")
    return numbers


def _read(path: Path, mapped: bool) -> dict[str, Tensor]:
    if not path.is_file() and not any(path.glob("*.npy")):
        raise InputError(f"{path}: no such file; give data.path a .npz or .safetensors file, or a folder of .npy files")
    if path.is_file() and path.suffix not in (".npz", ".safetensors"):
        raise InputError(f"{path}: unknown format {path.suffix!r}; .npz and .safetensors are read, and folders of .npy")
    if mapped and _is_compressed(path):
        raise InputError(f"{path}: it is compressed and cannot be mapped; write it with numpy.savez, or mapped: false")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)  # mapped: of what is not read nothing is in memory
        return {name: _tensor(array, f"{path}: array {name!r}") for name, array in _arrays(path, mapped)}
    except InputError:
        raise
    except Exception as error:
        if "Object arrays" in str(error):
            raise InputError(f"{path}: an array is of Python objects; expected real numbers") from error
        raise InputError(f"{path}: cannot be read ({error}); is the file whole?") from error


def _tensor(array: npt.NDArray[Any], name: str) -> Tensor:
    """The array as torch holds it: in this machine's order of bytes, long numbers as float64."""
    kind = array.dtype
    if kind.kind not in "biuf":
        raise InputError(f"{name} is {kind.name}; expected real numbers")
    if kind.isnative and kind != np.longdouble:
        return torch.from_numpy(array)
    if isinstance(array, np.memmap):
        raise InputError(f"{name} is {kind.str} and stays in its file; store it as float32, or mapped: false")
    return torch.from_numpy(array.astype(np.float64 if kind == np.longdouble else kind.newbyteorder("=")))


def _arrays(path: Path, mapped: bool) -> Iterator[tuple[str, Any]]:
    """The arrays of a .npz or folder by name."""
    # allow_pickle stays False: an object array could run code. Copies on write: torch wants what it can write to.
    if path.is_dir():
        for file in sorted(path.glob("*.npy")):
            yield file.stem, np.load(file, mmap_mode="c" if mapped and file.stem in MAPPED_ARRAYS else None)
        return
    with np.load(path) as arrays:
        for name in arrays.files:
            yield name, _mapped_member(path, name) if mapped and name in MAPPED_ARRAYS else arrays[name]


def _mapped_member(path: Path, name: str) -> Any:
    """An array of an uncompressed .npz, mapped at its place in the file."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member, path.open("rb") as file:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        # The local header: 30 bytes, of which the last four are the lengths of name and extra field behind it.
        start = archive.getinfo(f"{name}.npy").header_offset
        file.seek(start + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        offset = start + 30 + int(lengths.sum()) + member.tell()
    return np.memmap(path, dtype, "c", offset, shape, "F" if fortran else "C")


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.npy"))
    return path.stat().st_size if path.is_file() else 0


def _is_compressed(path: Path) -> bool:
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
