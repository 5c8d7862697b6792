"""Queries and keys that are normalised head by head before they are multiplied, as in Qwen3 and Gemma 3.

An RMS norm divides a head's query q = Q_h z + q_h by its root mean square r and multiplies by gains g, so the scores
are those of W = scale * diag(g) Q_h on the keys as they are multiplied, for the query z / r: exact, and linear in W.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.found import FoundAttention, Normalised, Place, Seen, Unwatchable, is_coarse, on_cpu
from lightning_maxmargin.probe.layouts import find_turn, in_heads, places, scaled, tolerance, turn_of, turned_back
from lightning_maxmargin.probe.tap import Call, Frame
from lightning_maxmargin.probe.visible import QueryToken, is_causal, visible_tokens, watched, watched_rows

#: Sequences on which norms are tried; and rounds of alternating least squares, which converge by a factor each.
TRIED, ROUNDS = 2, 100


class Divided(NamedTuple):
    """output = gains * given / rms.

    Attributes:
        by: (n, H, T), 1 / rms.
        gains: (dh,).
    """

    by: Tensor
    gains: Tensor


def find_normalised(call: Call, frame: Frame, both: tuple[Tensor, Tensor]) -> FoundAttention | None:
    """The layer, where two norms of this frame make its queries and keys, rotated or not.

    Args:
        call: within its pass.
        frame: a module that is running.
        both: queries (n, H, Tq, dh) and keys (n, Hkv, T, dh), as they are multiplied.
    """
    norms = [p for p in frame.projections if p.output.ndim == 4 and p.given.shape == p.output.shape]
    few = tuple(x[:TRIED] for x in both)
    for query, key in permutations(norms, 2):
        tokens = (few[0].shape[2], few[1].shape[2])
        for q_swaps, k_swaps in product(_swaps(query.output, tokens[0]), _swaps(key.output, tokens[1])):
            a, b = (_heads(p.output, swaps)[:TRIED] for p, swaps in ((query, q_swaps), (key, k_swaps)))
            if (
                a.shape != few[0].shape
                or b.shape[1:] != (b.shape[1], *few[1].shape[2:])
                or few[1].shape[1] % b.shape[1]
            ):
                continue
            own = few[1][:, :: few[1].shape[1] // b.shape[1]]
            plain = scaled(a, few[0]) is not None and scaled(b, own) is not None
            turn = None if plain else find_turn((a, b), (few[0], own))
            place = _place(frame, _heads(query.given, q_swaps)[:TRIED])
            if place is None or not (plain or turn) or divided(_heads(query.given, q_swaps)[:TRIED], a) is None:
                continue
            keys = Place(key.name, "normalised", torch.arange(b.shape[1] * b.shape[3]).view(b.shape[1], -1))
            causal = is_causal(visible_tokens(call, len(both[0])))
            return FoundAttention(
                frame.name, place, keys, None, False, turn[0] if turn else None, causal, coarse=is_coarse(both[0]),
                normalised=Normalised(query.name, q_swaps, k_swaps),
            )  # fmt: skip
    return None


def see_normalised(
    call: Call, found: FoundAttention, both: tuple[Tensor, Tensor], query_token: QueryToken, most: int
) -> Seen:
    """Reads such a layer within a pass; arguments as of :func:`~lightning_maxmargin.probe.read_layer.see`."""
    assert found.normalised is not None
    frame = next((f for f in reversed(call.frames) if f.name == found.owner), call.frames[-1])
    by_name = {p.name: p for p in frame.projections}
    norm, query_swaps, key_swaps = found.normalised
    query, key, projection = by_name.get(norm), by_name.get(found.keys.module), by_name.get(found.queries.module)
    if query is None or key is None or projection is None:
        raise Unwatchable("its projections were not called as in the first pass")
    a, b = _heads(query.output, query_swaps), _heads(key.output, key_swaps)
    ratio = divided(_heads(query.given, query_swaps), a)
    queries, keys = both[0], both[1][:, :: both[1].shape[1] // found.kv]
    at = watched(visible_tokens(call, len(queries)), query_token, most)
    rows = watched_rows(call, queries, keys, at)
    if isinstance(rows, str):
        raise Unwatchable(rows)
    seen: Tensor | None = None
    if found.rotary is not None:
        turn = turn_of(found.rotary, (a, b), (queries, keys))
        if turn is not None:
            unit = turn.unit[at.samples, :, at.tokens][:, :, None]
            seen = turned_back(keys[at.samples], found.rotary, unit, turn.query_scales)
    elif (factor := scaled(a, queries)) is not None and scaled(b, keys) is not None:
        seen = factor * keys[at.samples]
    if seen is None or ratio is None:
        raise Unwatchable("its queries and keys are no longer normalised as they were")
    z = projection.given[at.samples, at.tokens]
    reading = Reading(
        on_cpu(seen.transpose(1, 2).flatten(2)), on_cpu(z), None, rows.visible.cpu(), None, None,
        positions=at.tokens.cpu(), attention=on_cpu(rows.attention.to(z.dtype)), scale=rows.scale, turned=True,
        query_scales=on_cpu(ratio.by[at.samples, :, at.tokens]),
    )  # fmt: skip
    first = (projection.given[:1].detach(), projection.first)
    return Seen(reading, {projection.name: first}, on_cpu(ratio.gains))


def divided(given: Tensor, output: Tensor) -> Divided | None:
    """What an RMS norm of (n, H, T, dh) divides and multiplies by; None where it is another.

    Example:
        >>> x = torch.randn(2, 3, 4, 8)
        >>> divided(x, torch.nn.functional.rms_norm(x, (8,))).gains.round(decimals=4).tolist() == [1.0] * 8
        True
    """
    a, b = given.double(), output.double()
    x, y = a[:TRIED], b[:TRIED]
    by = y.norm(dim=-1) / x.norm(dim=-1).clamp_min(1e-300)
    gains = x.new_ones(x.shape[-1])
    for _ in range(ROUNDS):
        scaled_x = by[..., None] * x
        gains = (scaled_x * y).sum((0, 1, 2)) / (scaled_x * scaled_x).sum((0, 1, 2)).clamp_min(1e-300)
        by = _ratio(x, y, gains)
    # Gains and divisors are known up to a factor of both.
    size = gains.square().mean().sqrt().clamp_min(1e-300)
    gains = gains / size
    by = _ratio(a, b, gains)
    off = (b - by[..., None] * gains * a).norm()
    return Divided(by, gains) if float(off) <= tolerance(output) * float(b.norm()) else None


def _ratio(a: Tensor, b: Tensor, gains: Tensor) -> Tensor:
    return (gains * a * b).sum(-1) / (gains * a).square().sum(-1).clamp_min(1e-300)


def _place(frame: Frame, given: Tensor) -> Place | None:
    """The projection whose columns a norm is given."""
    for projection in frame.projections:
        if projection.output.ndim == 3 and projection.output.shape[1] == given.shape[2]:
            for layout, columns in places(projection.output.shape[-1], given.shape[1], given.shape[3], given.shape[1]):
                if scaled(in_heads(projection.output[:TRIED], columns), given) == 1.0:
                    return Place(projection.name, layout, columns)
    return None


def _swaps(x: Tensor, tokens: int) -> Iterator[bool]:
    """Whether tokens come before heads; both where they are as many."""
    if x.shape[1] == tokens:
        yield True
    if x.shape[2] == tokens:
        yield False


def _heads(x: Tensor, swaps: bool) -> Tensor:
    return x.transpose(1, 2) if swaps else x
