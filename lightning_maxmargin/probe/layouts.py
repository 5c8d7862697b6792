"""Where the heads lie in what a projection returns, and whether a rotary embedding turned them: found by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

#: Parts of one projection: queries, keys and values, and a gate.
MOST_PARTS = 4
#: Rounding of a rotation or a scaling, relative to the whole tensor, in units of the dtype. A wrong layout is off by 1.
ROUNDING = 16


class Rotary(NamedTuple):
    """A rotary embedding of the first ``width`` dimensions: which two belong together, before and after.

    Attributes:
        before: "half" (j and j + width/2) or "pairs" (2 j and 2 j + 1), of what the projection returns.
        after: likewise, of what is multiplied.
        width: dimensions that are turned.
    """

    before: str
    after: str
    width: int


class Turn(NamedTuple):
    """The rotation that a pass used: queries and keys are c u a, and c a in the dimensions that are not turned.

    Attributes:
        unit: (n, 1, T, width / 2) complex, of modulus 1, by position.
        query_scales: c of the queries, turned and not.
    """

    unit: Tensor
    query_scales: tuple[float, float]


def places(width: int, heads: int, size: int, queries: int) -> Iterator[tuple[str, Tensor]]:
    """The ways in which ``heads`` heads of ``size`` may lie in ``width`` columns: a name, and (heads, size) columns.

    Args:
        width: of the projection.
        heads: wanted; of the keys fewer than ``queries``, where these share them.
        size: dh.
        queries: heads of the queries.

    Example:
        >>> [name for name, columns in places(24, 2, 4, 2)][:3]
        ['part 1 of 3', 'part 1 of 3 in every head', 'part 1 of 3 in every dimension']
    """
    columns = torch.arange(width)
    parts = width // (heads * size)
    if width == heads * size:
        yield "whole", columns.view(heads, size)
    elif width == parts * heads * size and parts <= MOST_PARTS:
        for part in range(parts):
            name = f"part {part + 1} of {parts}"
            yield name, columns.view(parts, heads, size)[part]
            yield f"{name} in every head", columns.view(heads, parts, size)[:, part]
            yield f"{name} in every dimension", columns.view(heads, size, parts)[..., part]
    for kv in range(1, queries):
        if queries % kv or width != (queries + 2 * kv) * size or heads not in (kv, queries):
            continue
        at = slice(0, queries) if heads == queries else slice(queries, queries + kv)
        yield "queries, keys, values", columns.view(-1, size)[at]
        group = columns.view(kv, queries // kv + 2, size)
        yield "in groups", group[:, :-2].reshape(queries, size) if heads == queries else group[:, -2]


def in_heads(output: Tensor, columns: Tensor) -> Tensor:
    """(n, T, out) by heads: (n, heads, T, dh)."""
    return output[..., columns.to(output.device)].transpose(1, 2)


def scaled(before: Tensor, after: Tensor) -> float | None:
    """c with after = c before up to rounding; None where there is none.

    Example:
        >>> scaled(torch.ones(3), torch.full((3,), 0.5)), scaled(torch.ones(2), torch.tensor([1.0, 2.0]))
        (0.5, None)
    """
    a, b = _wide(before), _wide(after)
    square = float((a.abs() ** 2).sum())
    factor = float((a.conj() * b).real.sum()) / square if square else 1.0
    if float((b - factor * a).norm()) > tolerance(before, after) * float(b.norm()):
        return None
    return 1.0 if abs(factor - 1) < 1e-5 else factor


def same_lengths(before: Tensor, after: Tensor) -> bool:
    """Whether a rotation and a scaling could make one of the other, (n, heads, T, dh): lengths decide.

    Those of the dimensions that are turned alone may be scaled, so this is no more than a first look.
    """
    if before.shape != after.shape:
        return False
    a, b = _wide(before).norm(dim=-1), _wide(after).norm(dim=-1)
    factor = float((a * b).sum()) / max(float((a * a).sum()), 1e-300)
    return float((b - factor * a).norm()) <= 0.1 * float(b.norm())


def find_turn(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[Rotary, Turn] | None:
    """The rotary embedding between projected and multiplied queries and keys, (n, heads, T, dh) each, or None."""
    size = before[0].shape[-1]
    for width in range(size - size % 2, 0, -2):
        for form in (Rotary("half", "half", width), Rotary("pairs", "pairs", width), Rotary("pairs", "half", width)):
            if (turn := turn_of(form, before, after)) is not None:
                return form, turn
    return None


def turn_of(form: Rotary, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Turn | None:
    """The rotation, where it is of this form: one angle for all heads of queries and keys, one scale for each.

    Args:
        form: which dimensions belong together.
        before: queries (n, H, T, dh) and keys (n, Hkv, T, dh), as projected.
        after: the same as they are multiplied.
    """
    if before[0].shape[2] != before[1].shape[2]:
        return None
    a = [as_complex(x, form.before, form.width) for x in before]
    b = [as_complex(x, form.after, form.width) for x in after]
    unit = sum((x.conj() * y).sum(1, keepdim=True) for x, y in zip(a, b, strict=True))
    assert isinstance(unit, Tensor)
    unit = torch.where(unit == 0, torch.ones_like(unit), unit / unit.abs().clamp_min(1e-30))
    turned = [_scale_of(unit * x, y, full) for x, y, full in zip(a, b, before, strict=True)]
    rest = [scaled(x[..., form.width :], y[..., form.width :]) for x, y in zip(before, after, strict=True)]
    if None in turned or None in rest:
        return None
    return Turn(unit, (turned[0], rest[0]))  # type: ignore[arg-type]


def turned_back(keys: Tensor, form: Rotary, unit: Tensor, scales: tuple[float, float]) -> Tensor:
    """Keys (n, Hkv, T, dh) as seen from the query's position: the query's own rotation is taken from both.

    (u a)'k = a'(conj(u) k) in complex numbers, so the scores are a'k~ with the projected query a.

    Args:
        keys: as they are multiplied.
        form: of the embedding.
        unit: (n, 1, 1, width / 2), at the query's position.
        scales: of the queries, turned and not.
    """
    back = scales[0] * unit.conj() * as_complex(keys, form.after, form.width)
    front = torch.cat([back.real, back.imag], -1) if form.before == "half" else torch.view_as_real(back).flatten(-2)
    return torch.cat([front, scales[1] * _wide(keys[..., form.width :])], -1).to(keys.dtype)


def as_complex(x: Tensor, form: str, width: int) -> Tensor:
    """(..., dh) to (..., width / 2) complex.

    Example:
        >>> as_complex(torch.tensor([1.0, 2.0, 3.0, 4.0]), "half", 4).tolist()
        [(1+3j), (2+4j)]
    """
    front = _wide(x[..., :width])
    if form == "half":
        return torch.complex(front[..., : width // 2].contiguous(), front[..., width // 2 :].contiguous())
    return torch.view_as_complex(front.unflatten(-1, (-1, 2)).contiguous())


def tolerance(*tensors: Tensor) -> float:
    """Of a relative difference: rounding of the coarsest dtype."""
    return ROUNDING * max(torch.finfo(x.dtype).eps for x in tensors)


def _scale_of(a: Tensor, b: Tensor, like: Tensor) -> float | None:
    square = float((a.abs() ** 2).sum())
    factor = float((a.conj() * b).real.sum()) / square if square else 1.0
    return factor if float((b - factor * a).norm()) <= tolerance(like) * float(b.norm()) else None


def _wide(x: Tensor) -> Tensor:
    """At least float32: in half precision sums of squares overflow, and complex numbers are missing."""
    return x if x.dtype in (torch.float32, torch.float64) or x.is_complex() else x.float()
