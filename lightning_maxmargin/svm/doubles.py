"""Keys and values in float64 or float32 on the CPU, whatever they are and wherever they lie."""

from __future__ import annotations

import math
from mmap import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError

#: Numbers from which on numpy asks the system for large pages: 4 MB.
LARGE_PAGES = 2**19

Block = Tensor | npt.NDArray[Any]


def to_double(x: Tensor) -> Tensor:
    """x in float64 on the CPU, itself where it is that, and without its gradient.

    Large results lie in memory of numpy's, which has large pages: five million numbers of float16 take 1.5 ns each,
    in torch's own memory 4.2, most of it for the pages.

    Example:
        >>> to_double(torch.ones(2, dtype=torch.float16))
        tensor([1., 1.], dtype=torch.float64)
    """
    x = x.detach() if x.requires_grad else x
    if x.is_cpu and x.dtype == torch.float64:
        return x
    if x.numel() < LARGE_PAGES or x.layout != torch.strided:
        return x.to("cpu", torch.float64)
    return torch.from_numpy(np.empty(tuple(x.shape))).copy_(x)


def sparse_zeros(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Zeros of which only pages that are written to take memory.

    numpy's own come in pages of 2 MB, so that a few thousand entries of 80 MB fill them all: .17 s.

    Example:
        >>> sparse_zeros((2, 2)).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    count = math.prod(shape)
    if count < LARGE_PAGES:
        return np.zeros(shape)
    return np.frombuffer(mmap(-1, 8 * count)).reshape(shape)


def to_array(x: Block, name: str) -> npt.NDArray[np.float64]:
    """A float64 array on the CPU; refuses what is no real tensor or array."""
    if isinstance(x, Tensor):
        if x.is_complex():
            raise InputError(f"{name} are complex: pass real numbers")
        return to_double(x).numpy()
    try:
        return np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are no array of numbers ({type(x).__name__}): pass a torch tensor") from error


def is_narrow(block: Block) -> bool:
    """Whether float32 holds every number of the block."""
    kind = block.dtype
    return kind.itemsize <= 4 and (kind.is_floating_point if isinstance(kind, torch.dtype) else kind.kind == "f")


class Room:
    """Memory that one block after the other is read into: .2 ns a number to float32 and .6 to float64, without pages.

    Example:
        >>> room = Room()
        >>> room.doubles(torch.ones(2, dtype=torch.float16)), room.singles(np.ones(1, np.float16))
        (array([1., 1.]), array([1.], dtype=float32))
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, npt.NDArray[Any]] = {}

    def singles(self, block: Block) -> npt.NDArray[np.float32]:
        """The block in float32: itself where it is that on the CPU, else here, until the next one comes."""
        return self._read(block, np.float32)

    def doubles(self, block: Block) -> npt.NDArray[np.float64]:
        """The block in float64, likewise; refuses what is no real tensor or array."""
        if isinstance(block, Tensor) and not block.is_floating_point():
            return to_array(block, "keys")
        if not isinstance(block, Tensor | np.ndarray) or (isinstance(block, np.ndarray) and block.dtype.kind != "f"):
            return to_array(block, "keys")
        return self._read(block, np.float64)

    def _read(self, block: Block, kind: Any) -> npt.NDArray[Any]:
        if isinstance(block, Tensor):
            block = block.detach()
            if block.device.type == "cpu" and block.dtype == (torch.float32 if kind is np.float32 else torch.float64):
                return np.asarray(block.contiguous().numpy())
        elif block.dtype == kind:
            return np.asarray(block)
        shape, size = tuple(np.shape(block)), int(np.prod(np.shape(block)))
        if kind not in self._numbers or len(self._numbers[kind]) < size:
            self._numbers[kind] = np.empty(size, kind)
        here = self._numbers[kind][:size].reshape(shape)
        if isinstance(block, Tensor):
            torch.from_numpy(here).copy_(block)
        else:
            np.copyto(here, block)
        return here
