"""Where a foreign module's keys, queries and values come from, by the names of its submodules."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import nn

from lightning_maxmargin.errors import InputError


@dataclass(frozen=True)
class AttentionSource:
    """One attention layer of any module, named as in ``named_modules()``.

    Exactly one of three: ``keys`` and ``queries``, two submodules that project; ``qkv``, one that gives queries, keys
    and values side by side; ``attention``, a ``torch.nn.MultiheadAttention``. What the layer computes must be
    a_it = scale * (K_h x_it + k_h)'(Q_h z_i + q_h) per head h: affine keys and queries of the layer's inputs with
    nothing in between (no rotary embedding, no normalised keys; LoRA and other affine wrappers are fine).

    Args:
        keys: submodule (n, T, d) to (n, T, kv * dh); kv divides ``heads`` where queries share keys.
        queries: submodule (n, Tq, d) to (n, Tq, heads * dh).
        values: submodule (n, T, d) to (n, T, kv * dv), where the values are of interest.
        qkv: submodule (n, T, d) to (n, T, 3 * heads * dh).
        attention: a MultiheadAttention; it knows its heads and its padding.
        heads: how many.
        query_token: whose attention is watched: 0 for [CLS], -1 for the last token.
        scale: of the scores; 1 / sqrt(dh) where None.
        mask: key, attribute or position in the batch of (n, T) bool, true on tokens, where sequences are padded.

    Raises:
        InputError: none or several of the three, or no heads.

    Example:
        >>> AttentionSource(qkv="blocks.0.attn.qkv", heads=4).names
        ('blocks.0.attn.qkv',)
    """

    keys: str | None = None
    queries: str | None = None
    values: str | None = None
    qkv: str | None = None
    attention: str | None = None
    heads: int | None = None
    query_token: int = 0
    scale: float | None = None
    mask: str | int | None = None

    def __post_init__(self) -> None:
        ways = [self.keys is not None or self.queries is not None, self.qkv is not None, self.attention is not None]
        if sum(ways) != 1 or (self.keys is None) != (self.queries is None):
            raise InputError("AttentionSource: give keys and queries, or qkv, or attention: names of submodules")
        if self.attention is None and (self.heads is None or self.heads < 1):
            raise InputError(f"AttentionSource.heads: {self.heads}; expected a positive number of heads")

    @property
    def names(self) -> tuple[str, ...]:
        """The submodules that are hooked."""
        return tuple(n for n in (self.keys, self.queries, self.values, self.qkv, self.attention) if n is not None)


def find_module(root: nn.Module, name: str) -> nn.Module:
    """The submodule of this name.

    Raises:
        InputError: there is none; the message names the closest one.

    Example:
        >>> find_module(nn.Sequential(nn.Linear(2, 3)), "0")
        Linear(in_features=2, out_features=3, bias=True)
    """
    known = dict(root.named_modules())
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, [n for n in known if n], 1, cutoff=0.0)
    hint = f"; the closest is {near[0]!r}" if near else "; it has none"
    raise InputError(f"HeadMonitor.sources: {type(root).__name__} has no submodule {name!r}{hint}")
