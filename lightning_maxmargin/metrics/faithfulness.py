"""Whether a rationale is what the model used: comprehensiveness, sufficiency and AOPC, at the head or at the input.

At the head of attention pooling, f = sum_t s_t e_t with the evidence e_t (K,) of each unit, a set of units is removed
in closed form: f = sum_kept s_t e_t / sum_kept s_t, that is a softmax over the kept scores. A contextual encoder has
mixed the units before, so what was removed may still be in the others; :func:`aopc` takes any function of the kept
units, as a re-encoding is.

Conventions, by which libraries differ: y is the class predicted from the whole document; the share k of T units is
ceil(k T), at least one; AOPC is the mean over the bins, ERASER's 1, 5, 10, 20 and 50 % by default; and with no unit
left there is no evidence, f = 0.

Source: ERASER (DeYoung et al. 2020) and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics.rationale import ranked, real_units, units_of_share

ERASER_BINS = (0.01, 0.05, 0.1, 0.2, 0.5)

#: Of one document: (m, T) bool, which units are kept, to (m,) probabilities of the class that is explained.
Probability = Callable[[Tensor], Tensor]


class Faithfulness(NamedTuple):
    """AOPC of one document: high comprehensiveness and low sufficiency are good."""

    comprehensiveness: float
    sufficiency: float


def head_probabilities(scores: Tensor, evidence: Tensor, keep: Tensor) -> Tensor:
    """softmax_K(sum_t softmax(a_t over the kept) e_t): (n, m, K), uniform where nothing is kept.

    From the scores rather than from s = softmax(a): once one unit has all the mass in float, what is left after
    removing it is 0/0 from s, and exact from a. A bias b of the classes enters as e_t + b, save where nothing is kept.

    Args:
        scores: (n, T), attention before the softmax (log s will do).
        evidence: (n, T, K), V x_t; with K = 1 the logit of the second of two classes.
        keep: (n, m, T) bool, m sets of kept units of each document, False at padding.

    Example:
        >>> keep = torch.tensor([[[True, False]]])
        >>> head_probabilities(torch.tensor([[0.0, 900.0]]), torch.tensor([[[3.0], [0.0]]]), keep)
        tensor([[[0.0474, 0.9526]]], dtype=torch.float64)
    """
    n, m, T = keep.shape
    a = scores.detach().double()[:, None].expand(n, m, T).reshape(n * m, T)
    s = masked_softmax(a, keep.reshape(n * m, T)).reshape(n, m, T)
    # What is at padding may be NaN, which zero weights would keep.
    e = evidence.detach().double().masked_fill(~keep.any(1)[:, :, None], 0.0)
    logits = s @ e
    return (torch.cat([torch.zeros_like(logits), logits], 2) if logits.shape[2] == 1 else logits).softmax(2)


def head_probability(scores: Tensor, evidence: Tensor) -> Probability:
    """The head as :func:`aopc` and the bounds take a model: of one document, for the class it predicts.

    Args:
        scores: (T,), attention before the softmax, without padding.
        evidence: (T, K), as :func:`head_probabilities` takes it.

    Example:
        >>> p = head_probability(torch.zeros(2), torch.tensor([[2.0], [0.0]]))
        >>> p(torch.tensor([[True, True], [True, False], [False, False]]))
        tensor([0.7311, 0.8808, 0.5000], dtype=torch.float64)
    """
    whole = torch.ones(1, 1, len(scores), dtype=torch.bool, device=scores.device)
    y = head_probabilities(scores[None], evidence[None], whole)[0, 0].argmax()
    return lambda keep: head_probabilities(scores[None], evidence[None], keep[None].to(scores.device))[0, :, y]


def comprehensiveness(
    scores: Tensor,
    evidence: Tensor,
    mask: Tensor | None = None,
    *,
    rationale: Tensor | None = None,
    bins: Sequence[float] = ERASER_BINS,
) -> Tensor:
    """p_y(all) - p_y(without the top k) at the head, (n, bins); the AOPC is its mean over bins. NaN without a unit.

    Args:
        scores: (n, T), attention before the softmax.
        evidence: (n, T, K) of each class; K = 1 for the logit of two.
        mask: (n, T) bool.
        rationale: (n, T), what ranks the units, ties by position; the attention where None.
        bins: shares of the units.

    Example:
        >>> comprehensiveness(torch.zeros(1, 2), torch.tensor([[[2.0], [0.0]]]), bins=[0.5])
        tensor([[0.2311]], dtype=torch.float64)
    """
    return _drops(scores, evidence, mask, rationale, bins, remove=True)


def sufficiency(
    scores: Tensor,
    evidence: Tensor,
    mask: Tensor | None = None,
    *,
    rationale: Tensor | None = None,
    bins: Sequence[float] = ERASER_BINS,
) -> Tensor:
    """p_y(all) - p_y(only the top k) at the head, (n, bins), as :func:`comprehensiveness`; low is good.

    Args:
        scores: (n, T), attention before the softmax.
        evidence: (n, T, K), V x_t, or K = 1 as of :func:`head_probabilities`.
        mask: (n, T) bool, true at units.
        rationale: (n, T), higher is kept first; ``scores`` where None.
        bins: shares of the units that are kept.

    Example:
        >>> sufficiency(torch.zeros(1, 2), torch.tensor([[[2.0], [0.0]]]), bins=[0.5])
        tensor([[-0.1497]], dtype=torch.float64)
    """
    return _drops(scores, evidence, mask, rationale, bins, remove=False)


def _drops(
    scores: Tensor, evidence: Tensor, mask: Tensor | None, rationale: Tensor | None, bins: Sequence[float], remove: bool
) -> Tensor:
    scores, mask = real_units(scores, mask)
    evidence = evidence.detach().cpu()
    order = ranked(scores if rationale is None else rationale, mask)
    sizes = torch.stack([units_of_share(k, mask.sum(1)) for k in _shares(bins)], 1)
    top = order.argsort(dim=1)[:, None] < sizes[:, :, None]
    keep = torch.cat([mask[:, None], (~top if remove else top) & mask[:, None]], 1)
    p = head_probabilities(scores, evidence, keep)
    p = p.gather(2, p[:, :1].argmax(2, keepdim=True).expand(-1, p.shape[1], -1))[:, :, 0]
    return (p[:, :1] - p[:, 1:]).masked_fill(~mask.any(1, keepdim=True), torch.nan)


def aopc(probability: Probability, order: Tensor, bins: Sequence[float] | None = ERASER_BINS) -> Faithfulness:
    """Both AOPC of one document for any model that can be asked about a part of the units, in one call of it.

    Args:
        probability: (m, T) bool, the kept units, to (m,) probabilities of the class predicted from the whole.
        order: (T,) the units, the most important first.
        bins: shares of the units; None for every step from 1 to T, as arXiv 2408.08137 has it: then sufficiency removes
            the least important first, and is the comprehensiveness of the reversed order.

    Raises:
        InputError: ``order`` does not have each unit once.

    Example:
        >>> p = head_probability(torch.zeros(2), torch.tensor([[2.0], [0.0]]))
        >>> aopc(p, torch.tensor([0, 1]), bins=[0.5]).comprehensiveness
        0.2310585786300049
    """
    T = len(order)
    if T == 0 or sorted(order.tolist()) != list(range(T)):
        raise InputError(f"aopc: order {order.tolist()} is no order of {T} units; each once, the most important first")
    place = order.cpu().argsort()
    without = place >= step_sizes(T, bins, remove=True)[:, None]
    only = place < step_sizes(T, bins, remove=False)[:, None]
    p = probability(torch.cat([torch.ones(1, T, dtype=torch.bool), without, only])).detach().cpu().double()
    drops = p[0] - p[1:]
    return Faithfulness(float(drops[: len(without)].mean()), float(drops[len(without) :].mean()))


def step_sizes(T: int, bins: Sequence[float] | None, *, remove: bool) -> Tensor:
    """How many units are removed (or kept) at each step, (steps,) int64: of the bins, or all where None.

    Example:
        >>> step_sizes(3, None, remove=True).tolist(), step_sizes(3, None, remove=False).tolist()
        ([1, 2, 3], [0, 1, 2])
    """
    if bins is None:
        return torch.arange(1, T + 1) if remove else torch.arange(T)
    return torch.stack([units_of_share(k, torch.tensor(T)) for k in _shares(bins)])


def _shares(bins: Sequence[float]) -> Sequence[float]:
    if not len(bins):
        raise InputError("aopc: bins is empty; give shares of the units, [0.01, 0.05, 0.1, 0.2, 0.5] as ERASER")
    return bins
