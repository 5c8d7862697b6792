"""The matrix of a projection, whatever class it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError


class Affine(NamedTuple):
    """x to weight x + bias, in float64 on the CPU."""

    weight: Tensor  # (out, d)
    bias: Tensor  # (out,)

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias

    def part(self, at: int, parts: int) -> Affine:
        """Rows ``at`` of ``parts`` equal blocks."""
        return Affine(self.weight.chunk(parts)[at], self.bias.chunk(parts)[at])


def affine_of(module: nn.Module, name: str, seen: Tensor, output: Tensor) -> Affine:
    """The affine map of a module, checked against what it just computed.

    A plain Linear is read; anything else (LoRA, Conv1D, a chain of Linears) is evaluated at 0 and the unit vectors.

    Args:
        module: maps (..., d) to (..., out), in evaluation mode.
        name: for messages.
        seen: (n, T, d), an input it was given.
        output: (n, T, out), what it returned.

    Raises:
        InputError: it is not affine.

    Example:
        >>> x = torch.ones(1, 1, 2)
        >>> linear = nn.Linear(2, 3)
        >>> affine_of(linear, "k", x, linear(x)).weight.shape
        torch.Size([3, 2])
    """
    # By the method and not the class: a subclass (a LoRA layer) may add to its weight, FSDP swaps the class alone.
    if type(module).forward is nn.Linear.forward:
        weight = plain(module.weight)
        found = Affine(weight, plain(module.bias) if module.bias is not None else weight.new_zeros(len(weight)))
    else:
        units = torch.cat([seen.new_zeros(1, seen.shape[-1]), torch.eye(seen.shape[-1]).to(seen)])
        images = plain(module(units[None])[0])
        found = Affine((images[1:] - images[0]).T.contiguous(), images[0])
    x, y = plain(seen), plain(output)
    # Rounding of the module's own dtype, times the length of a sum; a ReLU or a rotation is off by the order of 1.
    allowed = 8 * torch.finfo(output.dtype).eps * x.shape[-1] ** 0.5 * (x.abs() @ found.weight.abs().T).max()
    if float((found(x) - y).abs().max()) > float(allowed + 8 * torch.finfo(output.dtype).eps * y.abs().max()):
        raise InputError(
            f"HeadMonitor.sources: {name!r} ({type(module).__name__}) is not affine; name the projection itself"
        )
    return found


def plain(tensor: Any) -> Tensor:
    """A copy in float64 on the CPU, for weights go on changing; a sharded parameter is gathered, so every process must
    ask."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().to("cpu", torch.float64, copy=True)
