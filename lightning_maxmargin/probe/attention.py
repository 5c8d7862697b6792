"""Every head of an attention layer against its own Att-SVM, at one moment: no Lightning in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_maxmargin.core import masked_softmax, select, take_token
from lightning_maxmargin.core.ranks import Alone, Ranks
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value, measured_by
from lightning_maxmargin.metrics import attention_margin, entropy, relative_margin, score_rows, sparsity
from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.sources import AttentionSource

if TYPE_CHECKING:
    from lightning_maxmargin.svm import Solution


@dataclass
class HeadSnapshot:
    """What was seen at one step, by head (``head0``, or ``LAYER/head0``).

    Attributes:
        values: ``HEAD/KEY`` for every key that a head has in :mod:`~lightning_maxmargin.keys`.
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
        W: (d, dq), scale * K_h' Q_h; (d, dq + 1) with a bias q_h, as scale * K_h' [Q_h, q_h].
        queries: (n, dq), or (n, dq + 1) with a last coordinate 1.
        values: (n, T, dv) or None.
    """

    W: Tensor
    queries: Tensor
    values: Tensor | None


def split_heads(source: AttentionSource, reading: Reading, heads: int) -> list[Head]:
    """The heads of a layer in input space.

    A bias of the keys adds the same to all scores of a sequence and changes no row; one of the queries is exactly a
    query with a coordinate 1 more.

    Args:
        source: for the scale.
        reading: of the layer.
        heads: how many.

    Raises:
        InputError: the widths do not divide by the heads, or keys and queries do not fit.
    """
    width, kept = len(reading.query_map.weight), len(reading.key_map.weight)
    if width % heads or kept % (width // heads) or heads % (shared := kept // (width // heads)):
        raise InputError(f"AttentionSource.heads: {heads} do not divide queries of width {width} and keys of {kept}")
    scale = source.scale if source.scale is not None else (width // heads) ** -0.5
    weight, queries = reading.query_map.weight, reading.queries
    if reading.query_map.bias.any():
        weight = torch.cat([weight, reading.query_map.bias[:, None]], 1)
        queries = torch.cat([queries, queries.new_ones(len(queries), 1)], 1)
    found = []
    for h in range(heads):
        of_keys = h * shared // heads
        key, query = reading.key_map.weight.chunk(shared)[of_keys], weight.chunk(heads)[h]
        values = None if reading.values is None else reading.values.chunk(shared, -1)[of_keys]
        found.append(Head(scale * key.T @ query, queries, values))
    return found


class HeadProbe:
    """Measures layers in float64, keeping each head's last solution to start from.

    The Att-SVM of a head is argmin ||W||_F with (x_alpha - x_t)' W z >= 1 for its selected tokens: its inputs x and z
    are held as they are now. A head is K_h' Q_h, of rank dh at most, which the SVM is not bound to, so a relative
    margin of 1 may be out of reach of a narrow head; it is never more than 1.

    Args:
        sources: by name of the layer; the name ``""`` leaves the prefix out.
        ranks: processes that measure together, each every ``ranks.size``-th head; this one alone where None.
    """

    def __init__(self, sources: dict[str, AttentionSource], ranks: Ranks | None = None) -> None:
        self.sources, self.ranks = sources, ranks or Alone()
        self._solutions: dict[str, Solution] = {}

    @torch.no_grad()
    def measure(self, readings: dict[str, Reading], heads: dict[str, int]) -> HeadSnapshot | None:
        """A snapshot, on the first process; None on the others.

        Args:
            readings: of every source, the same on all processes.
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

    def _mine(self, readings: dict[str, Reading], heads: dict[str, int]) -> list[HeadSnapshot]:
        """The heads of this process, one by one."""
        found: list[HeadSnapshot] = []
        dealt = 0
        for layer, source in self.sources.items():
            for h, head in enumerate(split_heads(source, readings[layer], heads[layer])):
                if dealt % self.ranks.size == self.ranks.rank:
                    found.append(HeadSnapshot())
                    self._head(f"{layer}/head{h}".removeprefix("/"), head, readings[layer], found[-1])
                dealt += 1
        return found

    def _head(self, name: str, head: Head, reading: Reading, snapshot: HeadSnapshot) -> None:
        from lightning_maxmargin.svm import only, solve_att_svm

        scores = torch.einsum("ntd,nd->nt", reading.keys, head.queries @ head.W.T)
        attention = masked_softmax(scores, reading.mask)
        alpha = select(scores, reading.mask)
        warm = self._solutions.get(name)
        solution = only(solve_att_svm(reading.keys, alpha, queries=head.queries, mask=reading.mask, warm_start=warm))
        self._solutions[name] = solution
        values: dict[str, Value] = dict.fromkeys(measured_by("head"))
        values |= _attention(attention, alpha, head.values)
        values |= _margins(scores, alpha, float(head.W.norm()), reading.mask, solution)
        snapshot.values |= {f"{name}/{key}": value for key, value in values.items()}
        snapshot.attention[name], snapshot.selected[name] = attention, alpha
        snapshot.solutions[name] = solution


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
