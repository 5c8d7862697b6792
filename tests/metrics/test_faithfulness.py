"""Comprehensiveness, sufficiency and AOPC against their definitions, and the bounds against every order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import (
    ERASER_BINS,
    Comprehensiveness,
    Sufficiency,
    aopc,
    aopc_bounds,
    comprehensiveness,
    head_probabilities,
    head_probability,
    normalised_aopc,
    sufficiency,
)
from lightning_maxmargin.metrics.faithfulness import Probability

seeds = st.integers(0, 10**6)
shares = st.lists(st.sampled_from([0.01, 0.2, 0.34, 0.5, 0.8, 1.0]), min_size=1, max_size=4)


def head(seed: int, n: int, T: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, evidence and a mask; what is at padding is NaN."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, T + 1, (n, 1), generator=g)
    mask = torch.arange(T) < lengths
    scores = 2 * torch.randn(n, T, generator=g, dtype=torch.float64)
    evidence = 2 * torch.randn(n, T, K, generator=g, dtype=torch.float64)
    return scores.masked_fill(~mask, torch.nan), evidence.masked_fill(~mask[:, :, None], torch.nan), mask


def pooled(scores: Tensor, evidence: Tensor, kept: list[int]) -> Tensor:
    """The class probabilities of sum_kept s e / sum_kept s, as it is written."""
    s = scores.softmax(0)
    f = sum(s[t] * evidence[t] for t in kept) / sum(s[t] for t in kept) if kept else torch.zeros(evidence.shape[1])
    f = f.double()
    return (torch.cat([torch.zeros(1), f]) if len(f) == 1 else f).softmax(0)


def by_definition(
    scores: Tensor, evidence: Tensor, order: list[int], sizes: list[int], remove: bool
) -> tuple[list[float], int]:
    whole = pooled(scores, evidence, order)
    y = int(whole.argmax())
    drops = [float((whole - pooled(scores, evidence, order[k:] if remove else order[:k]))[y]) for k in sizes]
    return drops, y


@settings(deadline=None, max_examples=60)
@given(seed=seeds, n=st.integers(1, 4), T=st.integers(1, 7), K=st.integers(1, 3), bins=shares)
def test_the_head_is_its_definition(seed: int, n: int, T: int, K: int, bins: list[float]) -> None:
    scores, evidence, mask = head(seed, n, T, K)
    rationale = torch.randint(3, (n, T), generator=torch.Generator().manual_seed(seed)).double()
    for ranking in (None, rationale):
        comp = comprehensiveness(scores, evidence, mask, rationale=ranking, bins=bins)
        suff = sufficiency(scores, evidence, mask, rationale=ranking, bins=bins)
        for i, length in enumerate(mask.sum(1).tolist()):
            a, e = scores[i, :length], evidence[i, :length]
            by = a if ranking is None else ranking[i]
            order = sorted(range(length), key=lambda t: (-float(by[t]), t))
            sizes = [max(1, math.ceil(round(k * length, 9))) for k in bins]
            for got, remove in ((comp[i], True), (suff[i], False)):
                want, _ = by_definition(a, e, order, sizes, remove)
                assert got.tolist() == pytest.approx(want, abs=1e-12)
            both = aopc(head_probability(a, e), torch.tensor(order), bins)
            assert both == pytest.approx((float(comp[i].mean()), float(suff[i].mean())), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, T=st.integers(1, 5), K=st.integers(1, 3), bins=st.none() | shares, remove=st.booleans())
def test_bounds_of_a_wide_beam_are_those_of_all_orders(
    seed: int, T: int, K: int, bins: list[float] | None, remove: bool
) -> None:
    scores, evidence, _ = head(seed, 1, T, K)
    p = head_probability(*(x[0].nan_to_num() for x in (scores, evidence)))
    values = [aopc(p, torch.tensor(order), bins)[1 - remove] for order in itertools.permutations(range(T))]
    exact = aopc_bounds(p, T, bins, remove=remove, beam=math.comb(T, T // 2))
    assert exact == pytest.approx((min(values), max(values)), abs=1e-12)
    narrow = aopc_bounds(p, T, bins, remove=remove, beam=1)
    assert exact.lower - 1e-12 <= narrow.lower <= narrow.upper <= exact.upper + 1e-12
    # A bound is some order's.
    assert all(min(abs(bound - v) for v in values) < 1e-12 for bound in narrow)


def test_bounds_of_six_units_for_any_function() -> None:
    table = torch.rand(64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def p(keep: Tensor) -> Tensor:
        return table[(keep * 2 ** torch.arange(6)).sum(1)]

    for bins in (None, ERASER_BINS, [0.5, 0.5, 0.9]):
        for remove in (True, False):
            values = [aopc(p, torch.tensor(order), bins)[1 - remove] for order in itertools.permutations(range(6))]
            assert aopc_bounds(p, 6, bins, remove=remove, beam=20) == pytest.approx((min(values), max(values)))


@settings(deadline=None, max_examples=30)
@given(seed=seeds, T=st.integers(1, 8))
def test_every_step_as_normalised_aopc_has_it(seed: int, T: int) -> None:
    scores, evidence, _ = head(seed, 1, T, 2)
    p = head_probability(*(x[0].nan_to_num() for x in (scores, evidence)))
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    a, b = aopc(p, order, None), aopc(p, order.flip(0), None)
    assert (a.sufficiency, b.sufficiency) == pytest.approx((b.comprehensiveness, a.comprehensiveness), abs=1e-12)
    up, down = (aopc_bounds(p, T, None, remove=remove, beam=70) for remove in (True, False))
    assert up == pytest.approx(down, abs=1e-12)
    for value in normalised_aopc(p, order, None, beam=70):
        assert math.isnan(value) or -1e-9 <= value <= 1 + 1e-9


def test_normalised_is_free_of_the_scale_of_the_model() -> None:
    g = torch.Generator().manual_seed(3)
    probability = head_probability(torch.randn(6, generator=g), torch.randn(6, 2, generator=g))

    def milder(keep: Tensor) -> Tensor:
        return 0.5 + probability(keep) / 10

    order = torch.arange(6)
    strong, mild = aopc(probability, order), aopc(milder, order)
    assert mild.comprehensiveness == pytest.approx(strong.comprehensiveness / 10)
    assert normalised_aopc(milder, order) == pytest.approx(normalised_aopc(probability, order))


def test_by_hand() -> None:
    """Ten units alike but the first, which alone has evidence: log 3 by a tenth of the mass, 1/2 without it."""
    scores, evidence = torch.zeros(1, 10), torch.zeros(1, 10, 1)
    evidence[0, 0] = 10 * math.log(3)
    p = [0.75 - x for x in (0.5, 0.5, 0.5, 0.5, 0.5)]
    ranking = torch.arange(10.0).flip(0)[None]
    assert comprehensiveness(scores, evidence, rationale=ranking)[0].tolist() == pytest.approx(p)
    alone = [3**10 / (1 + 3**10)] * 3 + [3**5 / (1 + 3**5), 9 / (1 + 9)]
    assert sufficiency(scores, evidence, rationale=ranking)[0].tolist() == pytest.approx([0.75 - x for x in alone])
    for metric, want in ((Comprehensiveness(), 0.25), (Sufficiency(), 0.75 - sum(alone) / 5)):
        metric.update(scores, evidence, None, ranking)
        metric.update(torch.zeros(1, 2), torch.ones(1, 2, 1), torch.zeros(1, 2, dtype=torch.bool))
        assert metric.compute().item() == pytest.approx(want)
        assert metric.left_out.item() == 1
    assert not Sufficiency().higher_is_better


def test_what_is_left_after_saturation() -> None:
    """All mass on one unit in float: without it, s is 0/0, and the scores still know the rest."""
    scores = torch.tensor([[900.0, 0.0, 1.0]])
    evidence = torch.tensor([[[5.0], [1.0], [-1.0]]])
    keep = torch.tensor([[[False, True, True], [False, False, False]]])
    f = (1 - math.e) / (1 + math.e)
    got = head_probabilities(scores, evidence, keep)[0, :, 1]
    assert got.tolist() == pytest.approx([1 / (1 + math.exp(-f)), 0.5], rel=1e-6)


def test_a_model_is_asked_once_for_all_bins() -> None:
    asked = []

    def p(keep: Tensor) -> Tensor:
        asked.append(keep)
        return keep.double().mean(1)

    both = aopc(p, torch.tensor([1, 0, 2, 3]), [0.25, 0.5])
    assert len(asked) == 1
    assert asked[0].int().tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]]
    assert both == (0.375, 0.625)


def test_wrong_input() -> None:
    def p(keep: Tensor) -> Tensor:
        return keep.double().mean(1)

    model: Probability = p
    with pytest.raises(InputError, match="no order"):
        aopc(model, torch.tensor([0, 0]))
    with pytest.raises(InputError, match="bins is empty"):
        aopc(model, torch.tensor([0, 1]), [])
    with pytest.raises(InputError, match=r"share of 5 "):
        aopc(model, torch.tensor([0, 1]), [5])
    with pytest.raises(InputError, match="beam of 0"):
        aopc_bounds(model, 3, beam=0)
    # Every order is alike to such a model.
    assert all(math.isnan(x) for x in normalised_aopc(lambda keep: torch.ones(len(keep)), torch.arange(3)))
