"""Intervals and tests against scipy, and against numbers known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.significance import bootstrap_mean, mcnemar, paired_bootstrap


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_is_scipys(confidence: float) -> None:
    values = np.random.default_rng(1).gamma(2.0, size=200)
    ours = bootstrap_mean(values, confidence=confidence, n=9999)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=9999, method="percentile", rng=2
    ).confidence_interval
    width = theirs.high - theirs.low
    # Two independent resamplings: the quantiles differ by a few hundredths of the width.
    assert abs(ours.low - theirs.low) < 0.04 * width
    assert abs(ours.high - theirs.high) < 0.04 * width
    assert ours.mean == values.mean()


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = [(i := bootstrap_mean(rng.normal(size=50), n=400, seed=k)).low <= 0 <= i.high for k in range(300)]
    # 300 coins of .95, or a little less: percentile intervals of few values are somewhat short.
    assert 0.89 <= np.mean(inside) <= 0.98


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=20), shift=st.integers(-3, 3))
def test_interval_is_inside_the_values_and_moves_with_them(values: list[float], shift: int) -> None:
    a = bootstrap_mean(values, n=100)
    assert min(values) - 1e-12 <= a.low <= a.high <= max(values) + 1e-12
    b = bootstrap_mean(np.asarray(values) + shift, n=100)
    assert (b.mean, b.low, b.high) == pytest.approx((a.mean + shift, a.low + shift, a.high + shift), abs=1e-9)
    assert a == bootstrap_mean(values, n=100)


def test_pairs_see_what_intervals_of_each_do_not() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(size=300)
    first, second = hard + 0.1 + 0.2 * rng.normal(size=300), hard
    difference = paired_bootstrap(first, second)
    assert difference.low > 0
    assert bootstrap_mean(first).low < bootstrap_mean(second).high
    assert difference.mean == pytest.approx((first - second).mean(), rel=1e-12)
    reverse = paired_bootstrap(second, first)
    assert (reverse.low, reverse.high) == pytest.approx((-difference.high, -difference.low), rel=1e-9)


def test_documents_without_an_answer_are_left_out() -> None:
    assert bootstrap_mean(torch.tensor([1.0, math.nan, 1.0])) == (1.0, 1.0, 1.0, 2)
    assert paired_bootstrap([1.0, math.nan, 3.0], [0.0, 1.0, math.nan]) == (1.0, 1.0, 1.0, 1)
    assert bootstrap_mean([math.nan]).documents == 0
    assert math.isnan(bootstrap_mean([]).mean)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (6, 0), (3, 3), (10, 2), (40, 22), (0, 1)])
def test_mcnemar_is_the_sum_of_binomials(b: int, c: int) -> None:
    first = [True] * b + [False] * c + [True] * 5 + [False] * 4
    second = [False] * b + [True] * c + [True] * 5 + [False] * 4
    m = b + c
    p = min(1.0, 2 * sum(math.comb(m, k) for k in range(min(b, c) + 1)) / 2**m)
    assert mcnemar(first, second)[:2] == (b, c)
    assert mcnemar(first, second).p == pytest.approx(p, rel=1e-12)
    assert mcnemar(second, first).p == pytest.approx(p, rel=1e-12)


def test_mcnemar_takes_tensors() -> None:
    right = torch.tensor([True, True, False])
    assert mcnemar(right, ~right) == (2, 1, 1.0)


def test_wrong_input() -> None:
    with pytest.raises(InputError, match="3 documents against 2"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="3 documents against 2"):
        mcnemar([True] * 3, [True] * 2)
    with pytest.raises(InputError, match="right and wrong"):
        mcnemar([0.5], [1])
    with pytest.raises(InputError, match="shape"):
        bootstrap_mean([[1.0]])
    with pytest.raises(InputError, match="confidence"):
        bootstrap_mean([1.0], confidence=95)
