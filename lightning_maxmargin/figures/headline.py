"""The most important number of a run first, and the two or three that one asks for next."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from lightning_maxmargin.figures.read import RunFiles
from lightning_maxmargin.figures.style import NAMES, floored, format_number, near_one
from lightning_maxmargin.keys_of_heads import table_of_heads


class Fact(NamedTuple):
    """A number as it is written, what it is, the word of the index that explains it, and what stands beneath."""

    value: str
    label: str
    term: str
    note: str = ""


def percent(x: float) -> str:
    """Three digits.

    Example:
        >>> percent(0.7165).replace("\\u00a0", " ")
        '71.7 %'
    """
    return f"{100 * x:.3g}\u00a0%" if x < 0.9995 else "100\u00a0%"


def text_headline(run: RunFiles, confusion: Sequence[Sequence[int]]) -> list[Fact]:
    """Accuracy with its baselines, agreement with people where there is any, and the median lead.

    Args:
        run: of documents.
        confusion: (K, K) documents by label and prediction, of the test or else of validation.
    """
    corpus = run.corpus or {}
    val, pool = corpus["accuracy"].get("val"), corpus["mean_pool"]
    test = run.number("test/accuracy")
    facts = []
    common = most_frequent(confusion)
    note = f"{percent(common)} by always giving the most frequent label" if common is not None else ""
    if test is not None:
        facts.append(Fact(percent(test), "of the test documents right", "accuracy", note))
    if val is not None:
        beside = f"mean pooling: {percent(pool['accuracy']['val'])}" if pool else ""
        label = "of the validation documents right"
        facts.append(Fact(percent(val), label, "accuracy", beside or (note if test is None else "")))
    for name, label, term in (
        ("rationale/auprc", "AUPRC of the words that people marked", "AUPRC"),
        ("margin/median_lead", "median lead over the training documents", "lead"),
    ):
        x = run.number(name)
        if x is not None:
            facts.append(Fact(format_number(x), label, term))
    return facts


def most_frequent(confusion: Sequence[Sequence[int]]) -> float | None:
    """Accuracy of always giving the most frequent label; None without documents.

    Example:
        >>> most_frequent([[3, 1], [2, 0]])
        0.6666666666666666
    """
    counts = np.asarray(confusion, dtype=np.float64).sum(axis=-1)
    return float(counts.max() / counts.sum()) if counts.sum() > 0 else None


def theory_headline(run: RunFiles) -> list[Fact]:
    """Nearest limit and gap to it, relative margin, certificate, accuracy; of many instances the share converged."""
    share = run.number("ensemble/settled")
    if share is not None and run.number("ensemble/instances"):
        facts = [Fact(percent(share), f"of {run.number('ensemble/instances'):,.0f} instances converged", "")]
    else:
        facts = _nearest(run)
    margin, status = run.number("relative_margin/attention"), run.text("status/attention")
    if margin is not None:
        facts.append(Fact(near_one(margin), "relative margin of the attention", "relative margin"))
    if status:
        facts.append(Fact(status, "SVM of the attention", status))
    accuracy = run.number("test/accuracy")
    if accuracy is not None:
        facts.append(Fact(percent(accuracy), "of the test examples right", "accuracy"))
    return facts


def heads_headline(run: RunFiles) -> list[Fact]:
    """What the module itself says of its quality, then its heads."""
    facts = []
    for split, of in (("test", "test"), ("val", "validation")):
        x = run.number(f"{split}/accuracy")
        if x is not None:
            facts.append(Fact(percent(x), f"of the {of} examples right", "accuracy"))
    margins = [x for row in table_of_heads(run.summary, "relative_margin/attention")[1] for x in row]
    known = [x for x in margins if x is not None]
    facts.append(Fact(f"{len(known)} of {len(margins)}", "attention heads with a certified SVM", "certified"))
    if known:
        facts.append(Fact(format_number(median(known)), "relative margin of the median head", "relative margin"))
    return facts


def _nearest(run: RunFiles) -> list[Fact]:
    gap, limit = run.number("direction_gap/attention"), run.text("svm/limit")
    if gap is None:
        return []
    name = f"nearest limit: {NAMES.get(limit, limit)} SVM" if limit else "to the SVM of the attention"
    return [Fact(floored(gap), "direction gap", "direction gap", name)]
