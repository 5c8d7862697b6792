"""How well a rationale agrees with the units (words) that people marked: AUPRC, R-precision, token F1 and IOU F1.

Every function takes a padded batch, ``scores`` (n, T), ``marked`` (n, T) bool and ``mask`` (n, T) bool, True at real
units, and answers per document in float64 on the CPU. A document without a marked unit, or with all of them marked, has
no answer: it is NaN, is left out of every mean, and the metrics count it in ``left_out``.

Source: ERASER (DeYoung et al. 2020) and its code. ERASER keeps documents of one kind in token F1 and IOU F1, where one
without a marked unit counts 0; here the same documents are in every column.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError


class Agreement(NamedTuple):
    """Per document, (n,) each: the share of the chosen that was marked, of the marked that was chosen, and their F1."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


def real_units(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in float64 and the mask, both on the CPU, padding zeroed; NaN at a real unit is refused."""
    scores = scores.detach().to("cpu", torch.float64)
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.detach().to("cpu", torch.bool)
    scores = scores.masked_fill(~mask, 0.0)
    if scores.isnan().any():
        where = scores.isnan().any(1).nonzero()[0].item()
        raise InputError(f"rationale: a score of document {where} is NaN; units without a score need mask False")
    return scores, mask


def ranked(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Units from the highest score to the lowest, ties by position, padding last: (n, T) int64.

    Example:
        >>> ranked(torch.tensor([[0.1, 0.7, 0.7]])).tolist()
        [[1, 2, 0]]
    """
    scores, mask = real_units(scores, mask)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, (~mask).gather(1, order).to(torch.int8).argsort(dim=1, stable=True))


def top_units(scores: Tensor, count: Tensor, mask: Tensor | None = None) -> Tensor:
    """The ``count`` (n,) highest real units of each document, ties by position: (n, T) bool.

    Example:
        >>> top_units(torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([1])).tolist()
        [[False, True, False]]
    """
    order = ranked(scores, mask)
    place = torch.arange(order.shape[1]).expand_as(order)
    top = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, place < count.cpu()[:, None])
    return top if mask is None else top & mask.cpu()


def units_of_share(share: float, length: Tensor) -> Tensor:
    """ceil(share T), at least one unit and at most all: (n,) int64 of the lengths (n,).

    Rounded to 1e-9 first: .05 of 140 is 7.000000000000001 in float64, and 7 units.

    Example:
        >>> units_of_share(0.05, torch.tensor([3, 140, 141])).tolist()
        [1, 7, 8]
    """
    if not 0 < share <= 1:
        raise InputError(f"rationale: a share of {share} of the units; it must be in (0, 1], 0.1 for a tenth")
    return (share * length.double() - 1e-9).ceil().long().clamp_min(1).minimum(length)


def chosen_units(
    scores: Tensor,
    marked: Tensor,
    mask: Tensor | None = None,
    *,
    share: float | None = None,
    threshold: float | None = None,
) -> Tensor:
    """The hard rationale, (n, T) bool: as many units as are marked, or ``share`` of them, or those >= ``threshold``.

    Args:
        scores: (n, T), higher is more of a rationale.
        marked: (n, T) bool, by people.
        mask: (n, T) bool, true at units.
        share: of a document's units that are chosen.
        threshold: the score from which a unit is chosen.

    Raises:
        InputError: both share and threshold are given.

    Example:
        >>> chosen_units(torch.tensor([[0.9, 0.2, 0.4]]), torch.tensor([[True, False, False]]), threshold=0.4).tolist()
        [[True, False, True]]
    """
    scores, mask = real_units(scores, mask)
    if threshold is not None:
        if share is not None:
            raise InputError("rationale: share and threshold both choose the units; give one of them")
        return (scores >= threshold) & mask
    count = (marked.cpu() & mask).sum(1) if share is None else units_of_share(share, mask.sum(1))
    return top_units(scores, count, mask)


def rationale_auprc(scores: Tensor, marked: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average precision sum_k (R_k - R_{k-1}) P_k over the distinct scores, (n,): ties enter together.

    That is the mean, over the marked units, of the share of marked among all units that score at least as much. Equal
    to scikit-learn's average_precision_score. ERASER's code calls it average_precision; what it calls AUPRC joins the
    points of the same curve by straight lines, and is another number.

    Args:
        scores: (n, T), any monotone scale.
        marked: (n, T) bool.
        mask: (n, T) bool, True at real units.

    Example:
        >>> rationale_auprc(torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[True, True, False]])).tolist()
        [0.8333333333333333]
    """
    scores, mask = real_units(scores, mask)
    marked, order = marked.cpu() & mask, ranked(scores, mask)
    sorted_scores, hits, real = (x.gather(1, order) for x in (scores, marked, mask))
    T = order.shape[1]
    place = torch.arange(T).expand_as(order)
    last = torch.ones_like(real)
    last[:, :-1] = (sorted_scores[:, :-1] != sorted_scores[:, 1:]) | ~real[:, 1:]
    # Where the run of equal scores ends that a unit is in.
    end = place.masked_fill(~last, T).flip(1).cummin(1).values.flip(1) if T else place
    precision = (hits.cumsum(1).double() / (place + 1)).gather(1, end)
    return _judged((precision * hits).sum(1) / hits.sum(1), marked, mask)


def r_precision(scores: Tensor, marked: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of marked units among the R highest, R of them marked, ties by position: (n,).

    Args:
        scores: (n, T), higher is more of a rationale.
        marked: (n, T) bool, by people.
        mask: (n, T) bool, true at units.

    Example:
        >>> r_precision(torch.tensor([[0.9, 0.5, 0.7]]), torch.tensor([[True, True, False]])).tolist()
        [0.5]
    """
    return agreement(chosen_units(scores, marked, mask), marked, mask).precision


def agreement(chosen: Tensor, marked: Tensor, mask: Tensor | None = None) -> Agreement:
    """Precision, recall and F1 of the chosen units of each document; a precision of nothing chosen is 0, as in ERASER.

    Args:
        chosen: (n, T) bool, as :func:`chosen_units` makes them, or from elsewhere.
        marked: (n, T) bool.
        mask: (n, T) bool.

    Example:
        >>> agreement(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])).precision.tolist()
        [0.5]
    """
    _, mask = real_units(chosen, mask)
    chosen, marked = chosen.cpu() & mask, marked.cpu() & mask
    both, took, truth = ((x.sum(1).double()) for x in (chosen & marked, chosen, marked))
    parts = (both / took.clamp_min(1), both / truth, 2 * both / (took + truth))
    return Agreement(*(_judged(part, marked, mask) for part in parts))


def token_f1(
    scores: Tensor,
    marked: Tensor,
    mask: Tensor | None = None,
    *,
    share: float | None = None,
    threshold: float | None = None,
) -> Tensor:
    """F1 between the chosen and the marked units, (n,); at the default, R units, it is :func:`r_precision`.

    Args:
        scores: (n, T), higher is more of a rationale.
        marked: (n, T) bool, by people.
        mask: (n, T) bool, true at units.
        share: of a document's units that are chosen.
        threshold: the score from which a unit is chosen.

    Example:
        >>> token_f1(torch.tensor([[0.9, 0.5, 0.7]]), torch.tensor([[True, False, False]]), threshold=0.6).tolist()
        [0.6666666666666666]
    """
    return agreement(chosen_units(scores, marked, mask, share=share, threshold=threshold), marked, mask).f1


def runs(units: Tensor) -> list[tuple[int, int]]:
    """The half-open spans of neighbouring True of (T,) bool.

    Example:
        >>> runs(torch.tensor([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    steps = torch.nn.functional.pad(units.cpu().to(torch.int8), (1, 1)).diff()
    return list(zip((steps == 1).nonzero()[:, 0].tolist(), (steps == -1).nonzero()[:, 0].tolist(), strict=True))


def span_agreement(chosen: Tensor, marked: Tensor, mask: Tensor | None = None, *, iou: float = 0.5) -> Agreement:
    """Precision, recall and F1 of spans, (n,) each: one is right if |both| / |either| >= iou with a marked span.

    Spans are runs of neighbouring units, so that two marked spans that touch are one. From iou .5 on no span can match
    two. The precision of a document with nothing chosen is NaN: ERASER leaves it out of that mean alone.

    Args:
        chosen: (n, T) bool.
        marked: (n, T) bool, by people.
        mask: (n, T) bool, true at units.
        iou: overlap from which two spans match.

    Raises:
        InputError: ``iou`` is below .5, where one span matches two.

    Example:
        >>> span_agreement(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])).f1.tolist()
        [1.0]
    """
    if not 0.5 <= iou <= 1:
        raise InputError(f"rationale: spans match from an overlap of {iou}; below 0.5 one span matches two")
    _, mask = real_units(chosen, mask)
    chosen, marked = chosen.cpu() & mask, marked.cpu() & mask
    counts = [_matches(runs(c), runs(m), iou) for c, m in zip(chosen, marked, strict=True)]
    both, took, truth = torch.tensor(counts, dtype=torch.float64).reshape(-1, 3).unbind(1)
    parts = (both / took, both / truth, 2 * both / (took + truth))
    return Agreement(*(_judged(part, marked, mask) for part in parts))


def iou_f1(chosen: Tensor, marked: Tensor, mask: Tensor | None = None, *, iou: float = 0.5) -> float:
    """ERASER's macro IOU F1: 2 P R / (P + R) of the mean precision P and the mean recall R of :func:`span_agreement`.

    0 where P and R are 0 or nothing was chosen anywhere, NaN without a document that has an answer.

    Args:
        chosen: (n, T) bool.
        marked: (n, T) bool, by people.
        mask: (n, T) bool, true at units.
        iou: overlap from which two spans match.

    Example:
        >>> iou_f1(torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]]))
        1.0
    """
    spans = span_agreement(chosen, marked, mask, iou=iou)
    P, R = float(spans.precision.nanmean().nan_to_num()), float(spans.recall.nanmean())
    return 0.0 if P + R == 0 else 2 * P * R / (P + R)


def _matches(took: list[tuple[int, int]], truth: list[tuple[int, int]], iou: float) -> tuple[int, int, int]:
    """Right spans, chosen spans, marked spans."""

    def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
        both = max(0, min(a[1], b[1]) - max(a[0], b[0]))
        return both / (a[1] - a[0] + b[1] - b[0] - both)

    return sum(any(overlap(a, b) >= iou for b in truth) for a in took), len(took), len(truth)


def _judged(value: Tensor, marked: Tensor, mask: Tensor) -> Tensor:
    """NaN where no unit is marked or all are."""
    truth = marked.sum(1)
    return value.masked_fill((truth == 0) | (truth == mask.sum(1)), torch.nan)
