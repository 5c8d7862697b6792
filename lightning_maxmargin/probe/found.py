"""An attention layer that was found in a forward pass, and what one pass says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.layouts import Rotary
from lightning_maxmargin.probe.tap import Call


class Unwatchable(Exception):
    """Why a layer is left out, in words."""


class Place(NamedTuple):
    """Where heads come from.

    Attributes:
        module: the projection's name.
        layout: which of its columns, in words.
        columns: (heads, dh), the same in numbers.
    """

    module: str
    layout: str
    columns: Tensor


class Normalised(NamedTuple):
    """Norms between projections and product.

    Attributes:
        norm: the queries' norm.
        query_swaps: whether it is given tokens before heads.
        key_swaps: likewise that of the keys.
    """

    norm: str
    query_swaps: bool
    key_swaps: bool


@dataclass
class FoundAttention:
    """One attention layer of any module.

    Its scores are a_it = scale * (K_h x_it + k_h)'(Q_h z_i + q_h), as its own softmax was given them; with a rotary
    embedding R, which turns position t by R_t, a_it = scale * (R_i' R_t (K_h x_it + k_h))'(Q_h z_i + q_h) for a query
    at position i.

    Attributes:
        owner: the module in whose forward the projections are called, or the MultiheadAttention.
        queries, keys, values: where they come from; values None where that is not certain.
        swapped: whether tokens come before samples.
        rotary: what turns queries and keys.
        causal: whether tokens see what is before them alone.
        multihead: whether it is a ``torch.nn.MultiheadAttention``.
        coarse: whether it is computed in half precision.
        normalised: the norms of queries and keys, where there are some; ``keys`` is then the keys' norm.
        key: the module that multiplies, and which of its attentions in a pass.
        tokens: that the queries see at most, in the pass in which it was found.
    """

    owner: str
    queries: Place
    keys: Place
    values: Place | None = field(default=None)
    swapped: bool = False
    rotary: Rotary | None = None
    causal: bool = False
    multihead: bool = False
    coarse: bool = False
    normalised: Normalised | None = None
    key: tuple[str, int] = ("", 0)
    tokens: int = 0

    @property
    def heads(self) -> int:
        return len(self.queries.columns)

    @property
    def kv(self) -> int:
        """Heads of the keys."""
        return len(self.keys.columns)

    @property
    def folded(self) -> bool:
        """Whether its keys are those that are multiplied, (n, T, Hkv dh), and not the layer's inputs."""
        return self.rotary is not None or self.normalised is not None

    @property
    def how(self) -> str:
        """What was found, in words."""
        words = ["causal" if self.causal else "bidirectional"]
        if self.kv < self.heads:
            words.append(f"{self.kv} key head{'s' * (self.kv > 1)} for {self.heads}")
        if self.rotary is not None:
            partly = "" if self.rotary.width == self.queries.columns.shape[1] else f" of {self.rotary.width} dimensions"
            words.append(f"rotary{partly}, folded into the keys")
        if self.normalised is not None:
            words.append("queries and keys normalised, folded likewise")
        if self.multihead:
            return f"{words[0]}; a MultiheadAttention"
        names = dict.fromkeys(place.module.rsplit(".", 1)[-1] for place in (self.queries, self.keys))
        return f"{', '.join(words)}; from {' and '.join(names)}"


class Seen(NamedTuple):
    """What one pass says of one layer, before its projections are read.

    Attributes:
        reading: without the maps.
        firsts: (given, output) of the projections' first sequence, by name.
        gains: (dh,) of the queries' norm.
    """

    reading: Reading
    firsts: dict[str, tuple[Tensor, Tensor]]
    gains: Tensor | None = None


def samples_first(x: Tensor, swapped: bool) -> Tensor:
    """(n, T, ...) of what may be (T, n, ...)."""
    return x.transpose(0, 1) if swapped else x


def on_cpu(x: Tensor) -> Tensor:
    """A copy, of at least float32; the module's own dtype else, for float64 of many layers would fill the memory."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.detach().to("cpu", dtype, copy=True)


def is_coarse(x: Tensor) -> bool:
    """Whether it is of half precision."""
    return torch.finfo(x.dtype).bits < 32


def multiplied(call: Call, samples: int) -> tuple[Tensor, Tensor] | None:
    """Queries (n, H, Tq, dh) and keys (n, Hkv, T, dh), or None where they are something else."""
    found = []
    for x in (call.queries, call.keys):
        if x is None or x.ndim not in (3, 4) or len(x) % samples:
            return None
        x = x.unflatten(0, (samples, -1)) if x.ndim == 3 else x
        if len(x) != samples:
            return None
        found.append(x)
    return (found[0], found[1]) if found[0].shape[1] % found[1].shape[1] == 0 else None
