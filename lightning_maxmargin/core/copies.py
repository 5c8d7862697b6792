"""Which tokens of a sequence have the same key, or nearly; :meth:`Sequences.copies` finds it once per data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maxmargin.core import waiting

#: Keys closer than this share of their length are near: a difference of sums then loses more than its inverse, 64
#: roundings, of their pull.
NEAR_KEY_SHARE = 2.0**-6
#: Numbers in one block of pairs or keys: 2 MiB of float32, which stay in cache.
PAIR_BLOCK_NUMBERS = 2**19
#: On a device, where each block costs its launches.
DEVICE_PAIR_BLOCK_NUMBERS = 2**22


@dataclass(frozen=True)
class Copies:
    """What the keys of a data set have in common.

    A token whose key is the selected one's pulls the attention nowhere, w (k - k) = 0, whatever its weight w; and where
    its value is another, that weight is of order 1 at any norm, while those of other tokens are e^-gap. So it has to be
    known, not left to rounding.

    Attributes:
        first: (n, T) int64, the first token of the sequence with this token's key, for keys that come with several
            values; its own place for other tokens. None where no key has several values.
        near: whether some sequence may have keys that are near and not equal.
        equal: whether some sequence may have equal keys, whatever their values.
        empty: whether some sequence may have no token at all.
    """

    first: Tensor | None
    near: bool
    equal: bool
    empty: bool = False

    def of(self, selected: Tensor) -> Tensor | None:
        """True at tokens with the selected one's key if it has several values, and at itself, (n, T); None for none.

        Example:
            >>> Copies(torch.tensor([[0, 1, 0]]), near=False, equal=True).of(torch.tensor([2])).tolist()
            [[True, False, True]]
        """
        return None if self.first is None else self.first == self.first.gather(1, selected[:, None])

    def joined(self, weights: Tensor) -> Tensor:
        """Weights (n, T) of tokens added up over each key with several values, at the first of them.

        Example:
            >>> Copies(torch.tensor([[0, 1, 0]]), near=False, equal=True).joined(torch.tensor([[1, 2, 4]])).tolist()
            [[5, 2, 0]]
        """
        return weights if self.first is None else torch.zeros_like(weights).scatter_add(1, self.first, weights)


def find_copies(keys: Tensor, values: Tensor, mask: Tensor | None = None, ask: bool = True) -> Copies:
    """Compares all pairs of each sequence: n T^2 d products in float32, 1 s for 1,000 texts of 256 tokens of 384.

    Args:
        keys: (n, T, d).
        values: (n, T, dv); the keys themselves where they are one.
        mask: (n, T) bool; padding is like no token.
        ask: whether to read what was found. Without, nothing waits for the device, and what may be counts as being.

    Example:
        >>> keys, values = torch.tensor([[[1.0, 2.0], [3.0, 1.0], [1.0, 2.0]]]), torch.tensor([[[1.0], [1.0], [2.0]]])
        >>> find_copies(keys, values).first.tolist(), find_copies(keys, keys).first
        ([[0, 1, 0]], None)
    """
    n, T, d = keys.shape
    parts = []
    numbers = PAIR_BLOCK_NUMBERS if waiting.answers_at_once(keys) else DEVICE_PAIR_BLOCK_NUMBERS
    block = max(1, numbers // max(1, T * T, T * d))
    # What is kept is written to memory from before the loop: pieces of it between the blocks' own would keep the heap
    # from using theirs again, .6 GB for keys of 1 GB.
    first = torch.empty(n, T, dtype=torch.int64, device=keys.device)
    seen = torch.empty(-(-n // block), 3, dtype=torch.bool, device=keys.device)
    for number, at in enumerate(range(0, n, block)):
        rows = slice(at, at + block)
        found = _find(keys[rows], None if values is keys else values[rows], None if mask is None else mask[rows])
        parts.append((first[rows].copy_(found[0]), *seen[number].copy_(torch.stack(found[1:]))))
    if not parts:
        return Copies(None, near=False, equal=False)
    firsts, *seen_flags = zip(*parts, strict=True)
    if not ask:
        return Copies(torch.cat(firsts), near=True, equal=True, empty=mask is not None)
    some_empty = keys.new_zeros((), dtype=torch.bool) if mask is None else ~mask.any(1).all()
    flags = [*map(torch.stack, seen_flags), some_empty]
    several, near, equal, empty = torch.stack([flag.any() for flag in flags]).tolist()
    return Copies(torch.cat(firsts) if several else None, near, equal, empty)


def _find(keys: Tensor, values: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``first``, whether some key has several values, whether some are near, whether some are equal."""
    T = keys.shape[1]
    itself = torch.eye(T, dtype=torch.bool, device=keys.device)
    pair = ~itself if mask is None else ~itself & mask[:, :, None] & mask[:, None]
    units, sizes = _units(keys)
    # |u - w|^2 = 2 - 2 u'w for unit vectors; keys that are near are within twice that after scaling.
    with torch.autocast(keys.device.type, enabled=False):
        close = torch.bmm(units, units.mT) >= 1 - 2 * NEAR_KEY_SHARE**2
    larger = torch.maximum(sizes[:, :, None], sizes[:, None])
    close &= (sizes[:, :, None] - sizes[:, None]).abs() <= NEAR_KEY_SHARE * larger
    close |= larger == 0
    close &= pair
    same = _equal_among(keys, close) if waiting.answers_at_once(keys) else _pairs_equal(keys) & pair
    several = torch.zeros_like(same[..., 0]) if values is None else (same & ~_pairs_equal(values)).any(2)
    first = torch.where(several, (same | itself).to(torch.int8).argmax(2), torch.arange(T, device=keys.device))
    return first, several.any(), (close & ~same).any(), same.any()


def _equal_among(keys: Tensor, close: Tensor) -> Tensor:
    """Which of the pairs (n, T, T) that are near are equal, where their products have the digits of float32."""
    # Most sequences have no near keys, and the hash of a token takes six times as long as the products with others.
    some = close.flatten(1).any(1).nonzero()[:, 0]
    if not len(some):
        return torch.zeros_like(close)
    return torch.zeros_like(close).index_copy(0, some, _pairs_equal(keys[some]) & close[some])


def _pairs_equal(tokens: Tensor) -> Tensor:
    """(n, T, T) bool, by a hash of each token's bits: true for equal tokens, and for others once in 2^60."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tokens.element_size()]
    # -0 becomes 0; a multiplication moves bits up, a shift down: numbers like .5 and 2 differ in their top bits alone.
    x = _mixed((tokens + 0.0).contiguous().view(bits).long())
    odd = _mixed(torch.arange(1, tokens.shape[2] + 1, device=tokens.device)) * 2 + 1
    marks = (x * odd).sum(2)
    return marks[:, :, None] == marks[:, None]


def _mixed(x: Tensor) -> Tensor:
    """int64 whose every bit depends on every bit of x."""
    x = x * -7046029254386353131
    x = (x ^ (x >> 32)) * -4658895280553007687
    return x ^ (x >> 29)


def _units(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and lengths of the keys in float32, the lengths beside the sequence's longest."""
    keys = keys.float() if keys.element_size() < 4 else keys
    top = keys.abs().amax(2, keepdim=True)
    scaled = keys / top.where(top > 0, 1.0)
    length = scaled.norm(dim=2, keepdim=True)
    sizes = (top / top.amax(1, keepdim=True).where(top.amax(1, keepdim=True) > 0, 1.0) * length)[..., 0]
    return (scaled / length.clamp_min(1)).float(), sizes
