"""The least and the greatest AOPC that any order of a document's units reaches, and AOPC on that scale.

AOPC compares explanations of one model; between models its range differs from document to document. (AOPC - lower) /
(upper - lower) does compare.

Source: Normalized AOPC (arXiv 2408.08137): NAOPC_exact over all orders, and NAOPC_beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics.faithfulness import ERASER_BINS, Faithfulness, Probability, aopc, step_sizes


class Bounds(NamedTuple):
    """The AOPC between which every order lies, as far as the beam saw; each is that of an order that was found."""

    lower: float
    upper: float


def aopc_bounds(
    probability: Probability,
    T: int,
    bins: Sequence[float] | None = ERASER_BINS,
    *,
    remove: bool = True,
    beam: int = 5,
) -> Bounds:
    """min and max over all orders of the AOPC, by a beam search over nested sets of units.

    A set of k units is worth p(all) - p(all but it), or with ``remove=False`` p(all) - p(it alone); an order is a chain
    of such sets, each one unit more than the last, and its AOPC the mean worth at the sizes of the bins. The search
    keeps ``beam`` sets of each size: those whose best chain so far, with their own worth at the weight of the next bin
    to come, is the most. The same set reached by two orders is held once, with the better chain, so that a beam of at
    least T choose T/2 is exact (20 for 6 units, 252 for 10). A narrower one gives bounds inside the true ones: an AOPC
    outside of them says to widen it. Each of the two searches asks about at most beam T^2 / 2 sets, in T batches or
    fewer.

    Args:
        probability: (m, T) bool to (m,), as :func:`~lightning_maxmargin.metrics.faithfulness.aopc` takes it.
        T: how many units.
        bins: shares; None for every step, where both directions have the same bounds.
        remove: bounds of comprehensiveness; of sufficiency where False.
        beam: how many sets are kept.

    Raises:
        InputError: no unit, or a beam below 1.

    Example:
        >>> from lightning_maxmargin.metrics import head_probability
        >>> p = head_probability(torch.zeros(2), torch.tensor([[2.0], [0.0]]))
        >>> [round(x, 4) for x in aopc_bounds(p, 2, bins=[0.5])]
        [-0.1497, 0.2311]
    """
    if T < 1 or beam < 1:
        raise InputError(f"aopc_bounds: {T} units and a beam of {beam}; both must be at least 1")
    sizes = step_sizes(T, bins, remove=remove)
    weight = torch.bincount(sizes, minlength=T + 1).double() / len(sizes)
    whole = float(probability(torch.ones(1, T, dtype=torch.bool)))

    def worth(sets: Tensor) -> Tensor:
        return whole - probability(~sets if remove else sets).detach().cpu().double()

    return Bounds(-_best(lambda sets: -worth(sets), weight, T, beam), _best(worth, weight, T, beam))


def _best(worth: Probability, weight: Tensor, T: int, beam: int) -> float:
    """The most that a chain found reaches: sum over sizes k of weight_k worth(set of k)."""
    sets = torch.zeros(1, T, dtype=torch.bool)
    total = weight[0] * worth(sets) if weight[0] else torch.zeros(1, dtype=torch.float64)
    # A set is known by the wrapping sum of its units' random numbers: equal sets meet whatever their order.
    number = torch.randint(-(2**62), 2**62, (T,), generator=torch.Generator().manual_seed(0))
    for k in range(1, int(weight.nonzero().max()) + 1):
        sets, total = _grow(sets, total, number)
        gain = worth(sets)
        hope = total + gain * weight[k:][weight[k:] > 0][0]
        total = total + gain * weight[k]
        kept = hope.topk(min(beam, len(hope))).indices
        sets, total = sets[kept], total[kept]
    return float(total.max())


def _grow(sets: Tensor, total: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Every set with one unit more, each once, with the most that was reached on the way to it."""
    parent, unit = (~sets).nonzero().unbind(1)
    name = (sets * number).sum(1)[parent] + number[unit]
    distinct, which = name.unique(return_inverse=True)
    first = torch.empty_like(distinct).scatter(0, which, torch.arange(len(which)))
    most = torch.full((len(distinct),), -torch.inf, dtype=torch.float64)
    most = most.scatter_reduce(0, which, total[parent], "amax")
    grown = sets[parent[first]].scatter(1, unit[first][:, None], True)
    return grown, most


def normalised_aopc(
    probability: Probability, order: Tensor, bins: Sequence[float] | None = ERASER_BINS, *, beam: int = 5
) -> Faithfulness:
    """(AOPC - lower) / (upper - lower) of both, with the bounds of :func:`aopc_bounds` for the same document and bins.

    1 is the most comprehensive order and 0 the most sufficient; NaN where every order has the same AOPC. A number
    outside [0, 1] says that the order beats the beam: widen it.

    Args:
        probability: of a batch of kept units, the probability of the label, as :func:`head_probability` makes it.
        order: (T,) units, the most important first.
        bins: shares of the units that are removed or kept; every number of units where None.
        beam: width of the search for the bounds.

    Example:
        >>> from lightning_maxmargin.metrics import head_probability
        >>> normalised_aopc(head_probability(torch.zeros(2), torch.tensor([[2.0], [0.0]])), torch.tensor([0, 1]))
        Faithfulness(comprehensiveness=1.0, sufficiency=0.0)
    """
    values = aopc(probability, order, bins)
    scaled = []
    for value, remove in zip(values, (True, False), strict=True):
        lower, upper = aopc_bounds(probability, len(order), bins, remove=remove, beam=beam)
        scaled.append((value - lower) / (upper - lower) if upper > lower else float("nan"))
    return Faithfulness(*scaled)
