"""Cases in which a token has the selected one's key, or nearly, and another value; and what is wrong on each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector, exact_directions
from lightning_maxmargin.core.batch import Instances, token_scores
from lightning_maxmargin.core.batch_directions import instance_directions
from tests.core.exact_reference import margin_loss, scores_of, with_mpmath

KINDS = ("no copies", "one copy", "several copies", "near copy", "several, some near", "near ties")
ROUTES = ("exact", "ensemble", "centred")
N, T, D = 2, 5, 3


@dataclass(frozen=True)
class Case:
    """One problem in one dtype, at a gap between the selected token's score and the next key's."""

    kind: str
    gap: float
    data: Sequences
    weight: Tensor
    v: Tensor
    loss: str

    @property
    def scores(self) -> Tensor:
        return scores_of(self.data, self.weight)

    @property
    def eps(self) -> float:
        return torch.finfo(self.v.dtype).eps


def draw_case(kind: str, seed: int, gap: float, dtype: torch.dtype, queries: bool, mask: bool) -> Case:
    """Normal tokens, of which some are made copies of the one that a random direction selects."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    keys, values = normal(N, T, D), normal(N, T, 2)
    z = normal(N, 2) if queries else None
    real = torch.ones(N, T, dtype=torch.bool)
    if mask:
        real[0, T - 1] = False
        keys[0, T - 1] = 7.0
    labels = torch.randint(2, (N,), generator=g).double() * 2 - 1
    data = Sequences(keys, labels, values=values, queries=z, mask=real if mask else None)
    weight = normal(D, 2) if queries else normal(D)
    a = scores_of(data, weight).masked_fill(~real, -torch.inf)
    top = a.topk(2, 1)
    weight = weight * (gap / float((top.values[:, 0] - top.values[:, 1]).min()))
    for i in range(N):
        chosen = int(top.indices[i, 0])
        others = [t for t in range(T) if t != chosen and bool(real[i, t])]
        count = {"no copies": 0, "near ties": 0, "one copy": 1, "near copy": 1}.get(kind, 2)
        for place, t in enumerate(others[:count]):
            keys[i, t] = keys[i, chosen]
            if kind == "near copy" or (kind == "several, some near" and place):
                distance = 10 ** -float(6 + 10 * torch.rand((), generator=g, dtype=torch.float64))
                keys[i, t] += distance * keys[i, chosen].norm() * torch.nn.functional.normalize(normal(D), dim=0)
        if kind == "near ties":
            values[i, others[0]] = values[i, chosen] + 1e6 * torch.finfo(dtype).eps * normal(2)
    v = normal(2) * 10 ** float(torch.rand((), generator=g, dtype=torch.float64))
    loss = ("logistic", "exponential")[seed % 2]
    return Case(kind, gap, data.to(dtype), weight.to(dtype), v.to(dtype), loss)


def reference(case: Case, route: str = "exact") -> tuple[Tensor, float]:
    """The direction that mpmath finds, and the error that rounding the input allows.

    That is 64 times how far the direction moves where every value, score and entry of v is rounded another way, and as
    many roundings of it. What is trained through autograd is given no scores: there a rounding of the largest counts.
    """
    true = with_mpmath(case.data, case.scores, case.v, case.loss)["attention"]
    g = torch.Generator().manual_seed(0)

    def rounded(x: Tensor) -> Tensor:
        signs = torch.randint(2, x.shape, generator=g).double() * 2 - 1
        return x.double() * (1 + case.eps * signs)

    moves, data = [], case.data.to(torch.float64)
    for _ in range(2):
        moved = Sequences(data.keys, data.labels, rounded(data.values), data.queries, data.mask)
        other = with_mpmath(moved, rounded(case.scores), rounded(case.v), case.loss)["attention"]
        moves.append(relative_error(other, true))
    size = 1 + (float(case.scores.abs().max()) if route == "centred" else 0.0)
    return true, 64 * (max(moves) + case.eps * size)


def underflows(case: Case) -> bool:
    """Whether the gradient's size, or a weight that matters, leaves the dtype's range: autograd has no logarithm."""
    log_size = float(with_mpmath(case.data, case.scores, case.v, case.loss)["log_attention"])
    return log_size < math.log(torch.finfo(case.v.dtype).tiny) + 20


def relative_error(got: Tensor, true: Tensor) -> float:
    """Of the direction; 0 where both are zero."""
    got, true = got.double().flatten(), true.double().flatten()
    if not true.any():
        return 0.0 if not got.any() else torch.inf
    if not (got.any() and got.isfinite().all()):
        return torch.inf
    # By the largest entry first: the square of 1e-245 is 0.
    got, true = got / got.abs().max(), true / true.abs().max()
    return float((got / got.norm() - true / true.norm()).norm())


def answers(cases: list[Case], route: str) -> Iterator[Tensor]:
    """The direction of every case; an ensemble works on all at once, so these must be of one shape and loss."""
    if route == "ensemble":
        yield from _ensemble(cases)
        return
    for case in cases:
        if route == "exact":
            yield exact_directions(case.data, case.scores, case.v, margin_loss(case.loss)).attention
        else:
            yield _centred(case)


def _ensemble(cases: list[Case]) -> Iterator[Tensor]:
    def stack(name: str) -> Tensor | None:
        parts = [getattr(c.data, name) for c in cases]
        return None if parts[0] is None else torch.stack(parts)

    keys, labels, values, queries, mask = map(stack, ("keys", "labels", "values", "queries", "mask"))
    assert keys is not None
    assert labels is not None
    data = Instances.stack(keys, labels, values, queries, mask)
    a = torch.stack([c.scores.T for c in cases], -1)
    heads = torch.stack([c.v for c in cases], -1)
    found = instance_directions(data, a, token_scores(data, heads), margin_loss(cases[0].loss))
    yield from found.attention.movedim(-1, 0)


def _centred(case: Case) -> Tensor:
    queries = case.data.queries
    kind = {"parametrization": "p"} if queries is None else {"query": "separate", "query_dim": queries.shape[1]}
    model = TokenSelector(D, value_dim=2, **kind).to(case.v.dtype)  # type: ignore[arg-type]
    weight = model.p if queries is None else model.W
    with torch.no_grad():
        weight.copy_(case.weight)
        model.v.copy_(case.v)
    margin_loss(case.loss)(model(case.data).logits, case.data.labels).mean().backward()
    assert weight.grad is not None
    return -weight.grad
