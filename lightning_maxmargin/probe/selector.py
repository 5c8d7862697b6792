"""Both margins and directions of a model against their SVMs, at one moment: no Lightning in here."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.core.ranks import Ranks
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value, measured_by
from lightning_maxmargin.probe.forward_pass import ForwardPass, Seen
from lightning_maxmargin.probe.geometry import EUCLIDEAN, Norms, Sizes
from lightning_maxmargin.probe.limit_problems import SMALL_DATA_NUMBERS, LimitProblems
from lightning_maxmargin.probe.own import OwnNumbers
from lightning_maxmargin.probe.parts import Parts, Tally
from lightning_maxmargin.probe.selector_numbers import (
    attention_numbers,
    gaps_of,
    head_numbers,
    selection_numbers,
    tally_of,
    under_norm,
)

if TYPE_CHECKING:
    from lightning_maxmargin.svm import JointSolution


@dataclass
class Snapshot:
    """What was seen at one step.

    Attributes:
        values: every key that a selector has in ``lightning_maxmargin.keys``, None where one is undefined.
        solutions: the limit problems that are defined now, by name.
        selected: (n,), alpha.
        direction: p (d,) or W (d, dq).
        head: v (d,) or V (K, d); empty for a nonlinear head.
    """

    values: dict[str, Value]
    solutions: dict[str, JointSolution] = field(repr=False)
    selected: Tensor = field(repr=False)
    direction: Tensor = field(repr=False)
    head: Tensor = field(repr=False)


class Probe:
    """Measures a model on one data set, in float64 on the CPU, keeping solutions while the selection stays.

    The strict and relaxed problems and the label SVM depend on the selected tokens alone, so they are solved again only
    when a selected token changes, from the last support rows; the rate-coupled one also follows rho.

    On several processes each measures its own sequences and all get the same snapshot; sequences that are many stay
    where they are, mapped or on a device, and are read a block at a time.

    Args:
        data: all sequences.
        train: ``both``, ``attention`` (the head is given: the limit is the strict problem) or ``head`` (the attention
            is given: the label SVM is about the pooled inputs).
        norms: whose margins the optimizers of attention and head maximise: all limit problems are stated in these, and
            margins measured. Where the optimum of one need not be unique it has no direction gap.
        own: what the user measures besides.
        ranks: the processes that call :meth:`measure` together, with the same data; this one alone where None.
        once: whether :meth:`measure_head` is called, once, and nothing else.

    A nonlinear head has no label SVM, and of the limits of the attention only the strict one is defined.

    Raises:
        InputError: another norm or numbers of the user's own on several processes; they need all sequences on one.
    """

    def __init__(
        self,
        data: Sequences,
        train: str = "both",
        norms: Norms = EUCLIDEAN,
        own: OwnNumbers | None = None,
        ranks: Ranks | None = None,
        once: bool = False,
    ) -> None:
        needs_all = (not norms.is_euclidean or own is not None) and not once
        self._parts = Parts(data, ranks, whole=needs_all, once=once)
        self.ranks = self._parts.ranks
        if needs_all and self.ranks.size > 1:
            which = " and ".join(sorted({repr(norm) for norm in norms if norm not in ("l2", 2)})) or "'l2'"
            raise InputError(f"norm {which} and numbers of your own need all sequences on one process: measure on one")
        self.train, self._norms, self._own = train, norms, own
        self._forward = ForwardPass(self._parts, train)
        self._limits = LimitProblems(self._parts, train, data.keys.numel() <= SMALL_DATA_NUMBERS)
        self._selected: Tensor | None = None

    @torch.no_grad()
    def measure(self, model: TokenSelector, threads: int = 1) -> Snapshot:
        """A snapshot of this model; the model itself is not touched.

        Args:
            model: of which.
            threads: two where nothing else is done meanwhile: two then look at many keys, and one solves the label SVM
                while the other solves the attention's. The numbers are the same.

        Raises: on several processes, what one of them fails at, on all.
        """
        model = _double(model)
        seen: Seen

        def look() -> tuple[bool, Tensor]:
            nonlocal seen
            seen = self._forward.run(model, threads)
            moved = self._selected is None or not torch.equal(seen.selected, self._selected)
            return moved, seen.selected

        looks = self.ranks.gather(look)
        moved = any(changed for changed, _ in looks)
        norms = self._norms.of(model)
        sizes = Sizes.of(model, norms)
        self._selected = seen.selected
        self._limits.solve(seen, moved, model, norms, sizes.ratio, threads)
        gaps = gaps_of(self._limits, model.direction)
        tally = self._tally(model, seen)
        values: dict[str, Value] = dict.fromkeys(measured_by("selector"))
        values |= selection_numbers(tally)
        values |= {"norm/attention": float(model.direction.norm()), "norm_ratio": sizes.ratio}
        values |= attention_numbers(self._limits, sizes.attention, gaps, tally)
        if sizes.head is not None:
            values |= {"norm/head": float(model.head.norm()), **head_numbers(self._limits, model, sizes.head, tally)}
        if norms.attention != "l2" and self.train != "head":
            values |= {"svm/norm": str(norms.attention), **under_norm(values)}
        if norms.head != "l2" and self._limits.head is not None:
            values["svm/head_norm"] = str(norms.head)
        if self._own is not None:
            values |= self._own.values(model, self._parts.data, seen.output, seen.selected)
        selected = torch.empty(self._parts.count, dtype=torch.int64)
        for rank, (_, part) in enumerate(looks):
            selected[rank :: self.ranks.size] = part
        return Snapshot(values, dict(self._limits.solutions), selected, model.direction.clone(), head_vector(model))

    @torch.no_grad()
    def measure_head(self, model: TokenSelector) -> dict[str, Value]:
        """What :meth:`measure` says of selection and head, without a limit problem of the attention: one pass and, in
        the Euclidean norm, one label SVM."""
        model = _double(model)
        norms, sizes = self._norms.of(model), Sizes.of(model, self._norms.of(model))
        seen: Seen

        def look() -> None:
            nonlocal seen
            seen = self._forward.run(model, 1, rows=False)

        self.ranks.gather(look)
        labels = sizes.head is not None and norms.head == "l2"
        if labels and self.train != "attention":
            self._limits.solve_head(seen, model, norms)
        tally = self._tally(model, seen)
        values: dict[str, Value] = dict(selection_numbers(tally))
        if labels and sizes.head is not None:
            values |= dict.fromkeys(("direction_gap/head", "relative_margin/head"))
            values |= head_numbers(self._limits, model, sizes.head, tally)
        return values

    def start_from(self, part: Probe, rows: Tensor) -> None:
        """Begins where a probe of these rows of the data (m,) is: its SVMs' support is the first guess of ours."""
        if self.ranks.size > 1 or not self._parts.in_memory:
            return  # what is solved a block at a time begins anew
        self._limits.start_from(part._limits, rows)

    def _tally(self, model: TokenSelector, seen: Seen) -> Tally:
        """Of the sequences of all processes."""
        mine = self.ranks.gather(lambda: tally_of(model, seen, self._parts, self._limits, self.train))
        return Tally.joined(mine)


def head_vector(model: TokenSelector) -> Tensor:
    """A copy of v or V; empty for a nonlinear head, which is no vector."""
    return model.head.detach().clone() if model.linear else torch.empty(0)


def _double(model: TokenSelector) -> TokenSelector:
    """The model in float64 on the CPU: itself where it is that already, for a copy costs as much as the solvers do."""
    tensors = [*model.parameters(), *model.buffers()]
    # A head of the user's may be in training mode, with batch statistics and random numbers of its own.
    if model.linear and all(
        t.device.type == "cpu" and t.dtype in (torch.float64, torch.int64, torch.bool) for t in tensors
    ):
        return model
    return copy.deepcopy(model).to("cpu").to(torch.float64).eval()
