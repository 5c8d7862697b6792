"""Is a difference on a few hundred documents more than chance: bootstrap intervals, and McNemar's exact test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from lightning_maxmargin.errors import InputError


class Interval(NamedTuple):
    """A mean over ``documents`` and its bootstrap interval."""

    mean: float
    low: float
    high: float
    documents: int


class McNemar(NamedTuple):
    """How many only the first got right, how many only the second, and the two-sided p-value."""

    only_first: int
    only_second: int
    p: float


def bootstrap_mean(values: ArrayLike, *, confidence: float = 0.95, n: int = 2000, seed: int = 0) -> Interval:
    """The mean over documents and its percentile interval: the quantiles of the means of n resamples with replacement.

    Args:
        values: (documents,) one number each; NaN, a document without an answer, is left out.
        confidence: share of the resampled means inside the interval.
        n: resamples.
        seed: of the resampling.

    Source: Efron and Tibshirani (1993), the percentile interval.

    Example:
        >>> interval = bootstrap_mean([0.0, 1.0] * 50)
        >>> interval.mean, round(interval.low, 2), round(interval.high, 2)
        (0.5, 0.4, 0.6)
    """
    if not 0 < confidence < 1 or n < 1:
        raise InputError(f"bootstrap: confidence {confidence} and n {n}; confidence is in (0, 1) and n at least 1")
    kept = _vector(values)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return Interval(np.nan, np.nan, np.nan, 0)
    rng = np.random.default_rng(seed)
    means = [kept[rng.integers(len(kept), size=len(kept))].mean() for _ in range(n)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(kept.mean()), float(low), float(high), len(kept))


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, n: int = 2000, seed: int = 0
) -> Interval:
    """The mean of first - second over the same documents, and its interval: :func:`bootstrap_mean` of the differences.

    A document that has no answer (NaN) in either is left out of both. The two differ at the level 1 - confidence where
    the interval has not 0 in it.

    Example:
        >>> paired_bootstrap([0.5, 0.75, 1.0], [0.25, 0.5, 0.75])
        Interval(mean=0.25, low=0.25, high=0.25, documents=3)
    """
    a, b = _pair(_vector(first), _vector(second))
    return bootstrap_mean(a - b, confidence=confidence, n=n, seed=seed)


def mcnemar(first: Sequence[bool] | ArrayLike, second: Sequence[bool] | ArrayLike) -> McNemar:
    """McNemar's exact test of two classifiers on the same documents: those that one alone got right are fair coins.

    p = P(|B - m/2| >= |b - m/2|), B ~ Bin(m, 1/2), with b of the m documents on which they disagree; 1 where m = 0.

    Args:
        first: (documents,) whether it was right.
        second: the same of the other.

    Source: McNemar (1947), in its exact form.

    Example:
        >>> mcnemar([True] * 6 + [False], [False] * 6 + [False])
        McNemar(only_first=6, only_second=0, p=0.03125)
    """
    a, b = _pair(_right(first), _right(second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, differ).pvalue) if differ else 1.0)


def _vector(values: ArrayLike) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"significance: values of shape {array.shape}; one number for each document, (documents,)")
    return array


def _right(values: ArrayLike) -> np.ndarray[Any, np.dtype[np.bool_]]:
    array = _vector(values)
    if not np.isin(array, (0, 1)).all():
        raise InputError("mcnemar: takes right and wrong, True and False, of each document; got other numbers")
    return array.astype(bool)


def _pair(
    a: np.ndarray[Any, np.dtype[Any]], b: np.ndarray[Any, np.dtype[Any]]
) -> tuple[np.ndarray[Any, np.dtype[Any]], np.ndarray[Any, np.dtype[Any]]]:
    if len(a) != len(b):
        raise InputError(f"significance: {len(a)} documents against {len(b)}; both must be of the same documents")
    return a, b
