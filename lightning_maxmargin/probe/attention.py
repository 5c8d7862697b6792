"""Every head of an attention layer against its own Att-SVM, at one moment: no Lightning in here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_maxmargin.core import masked_softmax, select, take_token, without_copies
from lightning_maxmargin.core.ranks import Alone, Ranks
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value, measured_by
from lightning_maxmargin.metrics import attention_margin, entropy, relative_margin, score_rows, sparsity
from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.found import FoundAttention
from lightning_maxmargin.probe.sources import AttentionSource

if TYPE_CHECKING:
    from lightning_maxmargin.svm import Solution

Source = AttentionSource | FoundAttention
#: Rounding of an attention weight, in units of the dtype times the largest score; and the most that half precision may
#: be off.
ROUNDING, MOST_OFF = 64, 0.1


@dataclass
class HeadSnapshot:
    """What was seen at one step, by head (``head0``, or ``LAYER/head0``).

    Attributes:
        values: ``HEAD/KEY`` for every key that a head has in ``lightning_maxmargin.keys``.
        attention: (n, T), the rows of the watched query.
        selected: (n,), alpha.
        solutions: the Att-SVM of the selected tokens.
    """

    values: dict[str, Value] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict, repr=False)
    selected: dict[str, Tensor] = field(default_factory=dict, repr=False)
    solutions: dict[str, Solution] = field(default_factory=dict, repr=False)


@dataclass
class Head:
    """One head as the model of this package: scores a_it = x_it' W z_i.

    Attributes:
        W: (d, dq), scale * K_h' Q_h; (d, dq + 1) with a bias q_h, as scale * K_h' [Q_h, q_h]. Where a rotary embedding
            turns the keys, (dh, dq), scale * Q_h.
        keys: (n, T, d), or (n, T, dh) where they are turned.
        queries: (n, dq), or (n, dq + 1) with a last coordinate 1.
        values: (n, T, dv) or None.
    """

    W: Tensor
    keys: Tensor
    queries: Tensor
    values: Tensor | None


def split_heads(source: Source, reading: Reading, heads: int) -> list[Head]:
    """The heads of a layer in input space.

    A bias of the keys adds the same to all scores of a sequence and changes no row; one of the queries is exactly a
    query with a coordinate 1 more. Keys that a rotary embedding turns are no linear function of the inputs, and so are
    the keys themselves: the head is then W = scale * Q_h on the projected keys, as seen from the query's position.

    Args:
        source: for the scale, where the reading has none.
        reading: of the layer, in float64.
        heads: how many.

    Raises:
        InputError: the widths do not divide by the heads, or keys and queries do not fit.
    """
    assert reading.query_map is not None
    width = len(reading.query_map.weight)
    kept = reading.keys.shape[-1] if reading.key_map is None else len(reading.key_map.weight)
    if width % heads or kept % (width // heads) or heads % (shared := kept // (width // heads)):
        raise InputError(f"AttentionSource.heads: {heads} do not divide queries of width {width} and keys of {kept}")
    scale = reading.scale if reading.scale is not None else getattr(source, "scale", None)
    scale = (width // heads) ** -0.5 if scale is None else scale
    weight, queries = reading.query_map.weight, reading.queries
    if reading.query_map.bias.any():
        weight = torch.cat([weight, reading.query_map.bias[:, None]], 1)
        queries = torch.cat([queries, queries.new_ones(len(queries), 1)], 1)
    found = []
    for h in range(heads):
        of_keys = h * shared // heads
        query = weight.chunk(heads)[h]
        asking = queries if reading.query_scales is None else queries * reading.query_scales[:, h, None]
        values = None if reading.values is None else reading.values.chunk(shared, -1)[of_keys]
        if reading.key_map is None:
            found.append(Head(scale * query, reading.keys.chunk(shared, -1)[of_keys], asking, values))
        else:
            key = reading.key_map.weight.chunk(shared)[of_keys]
            found.append(Head(scale * key.T @ query, reading.keys, asking, values))
    return found


def difference(source: FoundAttention, reading: Reading) -> tuple[float, float]:
    """The largest of an attention weight from the module's own, and what rounding may make of it.

    Args:
        source: that was found.
        reading: of it, with the module's own attention.
    """
    assert reading.attention is not None
    dtype, reading = reading.attention.dtype, reading.double()
    off = largest = 0.0
    for h, head in enumerate(split_heads(source, reading, source.heads)):
        scores = torch.einsum("ntd,nd->nt", head.keys, head.queries @ head.W.T)
        off = max(off, float((masked_softmax(scores, reading.mask) - reading.attention[:, h]).abs().max()))  # type: ignore[index]
        largest = max(largest, float(scores.abs().max()))
    return off, MOST_OFF if source.coarse else min(MOST_OFF, ROUNDING * torch.finfo(dtype).eps * (1 + largest))


def differs_by(off: float) -> str:
    """Why a layer is left out."""
    return f"recomputed from its inputs and weights, its attention differs by up to {off:.2g}"


class HeadProbe:
    """Measures layers in float64, keeping each head's last solution to start from.

    The Att-SVM of a head is argmin ||W||_F with (x_alpha - x_t)' W z >= 1 for its selected tokens: its inputs x and z
    are held as they are now. A head is K_h' Q_h, of rank dh at most, which the SVM is not bound to, so a relative
    margin of 1 may be out of reach of a narrow head; it is never more than 1.

    Args:
        sources: by name of the layer; the name ``""`` leaves the prefix out.
        ranks: processes that measure together, each every ``ranks.size``-th head; this one alone where None.
    """

    def __init__(self, sources: Mapping[str, Source], ranks: Ranks | None = None) -> None:
        self.sources, self.ranks = sources, ranks or Alone()
        self._solutions: dict[str, Solution] = {}

    @torch.no_grad()
    def measure(self, readings: Mapping[str, Reading | str], heads: dict[str, int]) -> HeadSnapshot | None:
        """A snapshot, on the first process; None on the others.

        Args:
            readings: of every source, the same on all processes; why, of one that cannot be read, whose numbers are
                then undefined.
            heads: of every source.
        """
        parts = self.ranks.collect(lambda: self._mine(readings, heads))
        if not parts:
            return None
        whole = HeadSnapshot()
        # Round after round, as the heads were dealt.
        for at in range(sum(heads.values())):
            part = parts[at % len(parts)][at // len(parts)]
            for name in ("values", "attention", "selected", "solutions"):
                getattr(whole, name).update(getattr(part, name))
        return whole

    @torch.no_grad()
    def look(self, readings: Mapping[str, Reading | str], heads: dict[str, int]) -> dict[str, Tensor]:
        """The attention (n, T) of every head in float64; of a layer that cannot be read there is none.

        Args:
            readings: of every source; why, of one that cannot be read.
            heads: of every source.
        """
        found = {}
        for layer, source in self.sources.items():
            reading = readings[layer]
            if isinstance(reading, Reading):
                for h, rows in enumerate(_rows(source, reading, heads[layer])):
                    found[f"{layer}/head{h}".removeprefix("/")] = rows.double()
        return found

    def _mine(self, readings: Mapping[str, Reading | str], heads: dict[str, int]) -> list[HeadSnapshot]:
        """The heads of this process, one by one."""
        found: list[HeadSnapshot] = []
        dealt = 0
        for layer, source in self.sources.items():
            reading = _readable(source, readings[layer])
            split = None if reading is None else split_heads(source, reading, heads[layer])
            for h in range(heads[layer]):
                if dealt % self.ranks.size == self.ranks.rank:
                    name = f"{layer}/head{h}".removeprefix("/")
                    found.append(HeadSnapshot(values={f"{name}/{key}": None for key in measured_by("head")}))
                    if split is not None and reading is not None:
                        self._head(name, split[h], reading, found[-1])
                dealt += 1
        return found

    def _head(self, name: str, head: Head, reading: Reading, snapshot: HeadSnapshot) -> None:
        from lightning_maxmargin.svm import only, solve_att_svm

        scores = torch.einsum("ntd,nd->nt", head.keys, head.queries @ head.W.T)
        attention = masked_softmax(scores, reading.mask)
        alpha = select(scores, reading.mask)
        warm = self._solutions.get(name)
        solution = only(solve_att_svm(head.keys, alpha, queries=head.queries, mask=reading.mask, warm_start=warm))
        self._solutions[name] = solution
        values = _attention(attention, alpha, head.values) | _ends(alpha, reading.mask, attention.shape[1])
        # The solver asks no lead over a copy of the selected key, so none is measured.
        others = without_copies(head.keys, alpha, reading.mask)
        values |= _margins(scores, alpha, float(head.W.norm()), others, solution)
        snapshot.values |= {f"{name}/{key}": value for key, value in values.items()}
        snapshot.attention[name], snapshot.selected[name] = attention, alpha
        snapshot.solutions[name] = solution


def _rows(source: Source, reading: Reading, heads: int) -> list[Tensor]:
    """The attention (n, T) of every head: the module's own where the reading has it."""
    if reading.attention is not None:
        return list(reading.attention.unbind(1))
    reading = reading.double()
    split = split_heads(source, reading, heads)
    scores = (torch.einsum("ntd,nd->nt", head.keys, head.queries @ head.W.T) for head in split)
    return [masked_softmax(x, reading.mask) for x in scores]


def _readable(source: Source, reading: Reading | str) -> Reading | None:
    """In float64; None where it cannot be read, or a layer's attention no longer follows from its inputs."""
    if isinstance(reading, str):
        return None
    if isinstance(source, FoundAttention) and reading.attention is not None:
        off, allowed = difference(source, reading)
        if off > allowed:
            warnings.warn(
                f"HeadMonitor: {source.owner} is left out of this evaluation: {differs_by(off)}", stacklevel=2
            )
            return None
    return reading.double()


def _ends(alpha: Tensor, mask: Tensor | None, length: int) -> dict[str, Value]:
    """How many queries with a choice select the first of the tokens that they see, and the last."""
    seen = torch.ones(len(alpha), length, dtype=torch.bool) if mask is None else mask
    first, last = seen.int().argmax(1), length - 1 - seen.flip(1).int().argmax(1)
    chooses = first < last
    if not chooses.any():
        return {}
    shares = {"attention/first": alpha == first, "attention/last": alpha == last}
    return {key: float(selected[chooses].double().mean()) for key, selected in shares.items()}


def _attention(attention: Tensor, alpha: Tensor, values: Tensor | None) -> dict[str, Value]:
    found: dict[str, Value] = {
        "attention/sparsity": float(sparsity(attention).mean()),
        "attention/entropy": float(entropy(attention).mean()),
        "attention/selected_mass": float(take_token(attention, alpha).mean()),
    }
    if values is not None:
        # What a token brings is s_t v_t: a large weight on a small value brings nothing (Kobayashi et al. 2020).
        parts = attention * values.norm(dim=-1)
        found["attention/selected_value"] = float((take_token(parts, alpha) / parts.sum(1).clamp_min(1e-300)).mean())
    return found


def _margins(scores: Tensor, alpha: Tensor, norm: float, mask: Tensor | None, solution: Solution) -> dict[str, Value]:
    found: dict[str, Value] = {
        "norm/attention": norm,
        "margin/attention": attention_margin(scores, alpha, norm, mask),
        "status/attention": solution.status.value,
        "svm/duality_gap": solution.gap,
        "svm/violation": solution.violation,
        "svm/support": float(len(solution.support)),
    }
    if solution.status != "certified" or norm == 0:
        return found
    rows = score_rows(scores, alpha, mask) / norm
    lead, real = rows.min(1).values, rows[rows.isfinite()]
    found["relative_margin/attention"] = relative_margin(float(lead.min()), solution.margin)
    found["relative_margin/median"] = relative_margin(float(lead.median()), solution.margin)
    if len(real):
        found["svm/rows_met"] = float((real >= solution.margin * (1 - 1e-7)).double().mean())
    return found
