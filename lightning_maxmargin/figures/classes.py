"""Right and wrong by label, as classification reports have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_maxmargin.figures.read import Array

#: Labels whose confusion matrix is shown.
MOST_IN_MATRIX = 10


class ClassRow(NamedTuple):
    """A line of the table: a label, or a mean over labels."""

    label: str
    precision: str
    recall: str
    f1: str
    documents: str


class Cell(NamedTuple):
    """A cell of the confusion matrix; opacity is its share of its row."""

    documents: str
    opacity: str
    right: bool


def class_rows(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[ClassRow]:
    """Precision, recall, F1 and count of every label, then accuracy and the means, weighted alike and by count.

    A precision without a prediction and a recall without a document are shown as a dash and count 0 in the means, as
    scikit-learn has it.

    Args:
        labels: K names.
        confusion: (K, K) documents by label and prediction.

    Example:
        >>> rows = class_rows(["bad", "good"], [[3, 1], [0, 4]])
        >>> rows[1], rows[2].f1
        (ClassRow(label='good', precision='0.800', recall='1.000', f1='0.889', documents='4'), '0.875')
    """
    table = np.asarray(confusion, dtype=np.float64).reshape(len(labels), len(labels))
    right, truth, said = table.diagonal(), table.sum(1), table.sum(0)
    precision, recall = _over(right, said), _over(right, truth)
    f1 = _over(2 * right, truth + said)
    rows = [
        ClassRow(name, _shown(precision[k]), _shown(recall[k]), _shown(f1[k]), f"{truth[k]:,.0f}")
        for k, name in enumerate(labels)
    ]
    n = truth.sum()
    accuracy = right.sum() / n if n else np.nan
    known = [np.nan_to_num(x) for x in (precision, recall, f1)]
    # As scikit-learn: a label that neither occurs nor is predicted is left out of the mean.
    there = (truth + said) > 0
    macro = [float(x[there].mean()) if there.any() else np.nan for x in known]
    weighted = [float((x * truth).sum() / n) if n else np.nan for x in known]
    count = f"{n:,.0f}"
    return [
        *rows,
        ClassRow("accuracy", "", "", _shown(accuracy), count),
        _mean("mean over labels", macro, count),
        _mean("mean over documents", weighted, count),
    ]


def _mean(name: str, values: Sequence[float], count: str) -> ClassRow:
    precision, recall, f1 = map(_shown, values)
    return ClassRow(name, precision, recall, f1, count)


def confusion_cells(confusion: Sequence[Sequence[int]]) -> list[list[Cell]]:
    """The matrix as cells; empty with more than :data:`MOST_IN_MATRIX` labels."""
    table = np.asarray(confusion, dtype=np.float64)
    if len(table) > MOST_IN_MATRIX:
        return []
    shares = _over(table, table.sum(1, keepdims=True))
    return [
        [Cell(f"{x:,.0f}", f"{0.7 * np.nan_to_num(shares[i, j]):.3f}", i == j) for j, x in enumerate(row)]
        for i, row in enumerate(table)
    ]


def _over(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)


def _shown(x: float) -> str:
    return "—" if np.isnan(x) else f"{x:.3f}"
