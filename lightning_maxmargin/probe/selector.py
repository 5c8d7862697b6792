"""Both margins and directions of a model against their SVMs, at one moment: no Lightning in here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector, select, take_token, without_copies
from lightning_maxmargin.core.ahead import beside, by_thread
from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.core.model import Output
from lightning_maxmargin.core.products import products
from lightning_maxmargin.core.ranks import Ranks
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import LIMITS, Value, measured_by
from lightning_maxmargin.metrics import (
    direction_gap,
    entropy,
    globally_optimal,
    locally_optimal,
    relative_margin,
    score_rows,
)
from lightning_maxmargin.metrics.margin import label_rows
from lightning_maxmargin.metrics.selection import selected_mass
from lightning_maxmargin.probe.geometry import EUCLIDEAN, Norms, Sizes
from lightning_maxmargin.probe.own import OwnNumbers
from lightning_maxmargin.probe.parts import NUMBERS_IN_MEMORY, NUMBERS_TO_COPY, Parts, Tally

if TYPE_CHECKING:
    from lightning_maxmargin.svm import JointSolution, Solution

#: Up to so many numbers in the keys every evaluation solves afresh, in a few milliseconds: an answer that began at the
#: last one differs in its last digit, and a resumed run has evaluated other steps.
SMALL_DATA_NUMBERS = 100_000
#: Gaps that differ by less are of one direction: which is the least is rounding, and differs between processes.
TIE = 1e-12


@dataclass
class Snapshot:
    """What was seen at one step.

    Attributes:
        values: every key that a selector has in :mod:`~lightning_maxmargin.keys`, None where one is undefined.
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


class Seen(NamedTuple):
    """This process's sequences at one step.

    chosen (m, dv): the values of the selected tokens, or the pooled ones where the head alone is trained; queries
    (m, dq) or None; others (m, T): the tokens less copies of the selected ones, which the SVM merges as well; gamma
    (m, T): y_i v'x_it, None where labels are not -1 and 1 or v is 0.
    """

    output: Output
    selected: Tensor
    chosen: Tensor
    queries: Tensor | None
    others: Tensor
    gamma: Tensor | None


def _has_gamma(model: TokenSelector) -> bool:
    return model.num_classes == 2 and (not model.linear or bool(model.head.any()))


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
        self._small = data.keys.numel() <= SMALL_DATA_NUMBERS
        self._selected: Tensor | None = None
        # Selected tokens, and the tokens less copies of these.
        self._others: tuple[Tensor, Tensor] | None = None
        self._solutions: dict[str, JointSolution] = {}
        self._head: Solution | None = None

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
            seen = self._look(model, threads)
            moved = self._selected is None or not torch.equal(seen.selected, self._selected)
            return moved, seen.selected

        looks = self.ranks.gather(look)
        moved = any(changed for changed, _ in looks)
        norms = self._norms.of(model)
        sizes = Sizes.of(model, norms)
        self._solve(seen, moved, model, norms, sizes.ratio, threads)
        gaps = self._gaps(model.direction)
        tally = Tally.joined(self.ranks.gather(lambda: self._tally(model, seen)))
        values: dict[str, Value] = dict.fromkeys(measured_by("selector"))
        values |= _selection(tally)
        values |= {"norm/attention": float(model.direction.norm()), "norm_ratio": sizes.ratio}
        values |= self._attention(sizes.attention, gaps, tally)
        if sizes.head is not None:
            values |= {"norm/head": float(model.head.norm()), **self._label(model, sizes.head, tally)}
        if norms.attention != "l2" and self.train != "head":
            values |= {"svm/norm": str(norms.attention), **_under_norm(values)}
        if norms.head != "l2" and self._head is not None:
            values["svm/head_norm"] = str(norms.head)
        if self._own is not None:
            values |= self._own.values(model, self._parts.data, seen.output, seen.selected)
        selected = torch.empty(self._parts.count, dtype=torch.int64)
        for rank, (_, part) in enumerate(looks):
            selected[rank :: self.ranks.size] = part
        return Snapshot(values, dict(self._solutions), selected, model.direction.clone(), head_vector(model))

    @torch.no_grad()
    def measure_head(self, model: TokenSelector) -> dict[str, Value]:
        """What :meth:`measure` says of selection and head, without a limit problem of the attention: one pass and, in
        the Euclidean norm, one label SVM."""
        model = _double(model)
        norms, sizes = self._norms.of(model), Sizes.of(model, self._norms.of(model))
        seen: Seen

        def look() -> None:
            nonlocal seen
            seen = self._look(model, 1, rows=False)

        self.ranks.gather(look)
        labels = sizes.head is not None and norms.head == "l2"
        if labels and self.train != "attention":
            self._head = self._label_svm(seen, model, norms)
        tally = Tally.joined(self.ranks.gather(lambda: self._tally(model, seen)))
        values: dict[str, Value] = dict(_selection(tally))
        if labels and sizes.head is not None:
            values |= dict.fromkeys(("direction_gap/head", "relative_margin/head"))
            values |= self._label(model, sizes.head, tally)
        return values

    # --- this process's sequences -----------------------------------------------------------------------------

    def _look(self, model: TokenSelector, threads: int, rows: bool = True) -> Seen:
        """Goes once over all sequences of this process, a block at a time; copies of keys count where ``rows`` do."""
        outputs, chosen, queries, others, gamma, at = [], [], [], [], [], 0
        has_gamma = _has_gamma(model)
        for block, output, token_values in self._looks(model, threads):
            alpha = select(output.scores, block.mask)
            outputs.append(output)
            if self.train == "head":
                chosen.append(torch.einsum("nt,ntd->nd", output.attention, block.values))
            else:
                chosen.append(take_token(block.values, alpha).double())
            z = model.queries(block)
            queries.append(None if z is None else z.clone())  # of a block whose place the next one takes
            others.append(self._without_copies(block, alpha, at) if rows else _real(block))
            if has_gamma:
                if token_values is None:
                    token_values = model.logits(block.values.flatten(0, 1)).view(block.values.shape[:2])
                gamma.append(block.labels[:, None] * token_values)
            at += len(block)
        joined = Output(*(torch.cat(columns) for columns in zip(*outputs, strict=True)))
        z = None if queries[0] is None else torch.cat([q for q in queries if q is not None])
        selected = select(joined.scores, self._parts.mask)
        kept = torch.cat(others)
        self._others = (selected, kept) if rows else None
        return Seen(joined, selected, torch.cat(chosen), z, kept, torch.cat(gamma) if gamma else None)

    def _looks(self, model: TokenSelector, threads: int) -> Iterator[tuple[Sequences, Output, Tensor | None]]:
        """Blocks, what the model says of them, and v'x_it (m, T) where that is known along the way.

        Of many keys that are the values too, and are asked about by one prompt, two products are all that is needed:
        the blocks then are as they lie.
        """
        data = self._parts.data
        two = self.train != "head" and model.query == "shared" and model.linear and model.num_classes == 2
        if not two or self._parts.in_memory or data.values is not data.keys or data.keys.device.type != "cpu":
            for block in self._parts.blocks():
                yield block, model(block), None
            return
        directions = torch.stack([model.direction, model.head])

        def read(block: Sequences) -> tuple[Sequences, Tensor]:
            return block, products(block.keys, directions)

        blocks = self._parts.as_they_are()
        for block, both in by_thread(read, blocks, threads, threads) if threads > 1 else map(read, blocks):
            scores, token_values = both
            attention = masked_softmax(scores, block.mask)
            yield block, Output((attention * token_values).sum(1), attention, scores), token_values

    def _without_copies(self, block: Sequences, selected: Tensor, at: int) -> Tensor:
        """The tokens (m, T) of the sequences from ``at`` on less copies of the selected ones."""
        if self._others is not None and torch.equal(selected, self._others[0][at : at + len(block)]):
            return self._others[1][at : at + len(block)]
        data, real = self._parts.data, block.mask
        known = data.copies() if data.knows_copies else None
        if known is None or known.equal or known.near:
            keys = block.keys if block.keys.dtype == torch.float64 else block.keys.double()
            real = without_copies(keys, selected, block.mask)
        return _real(block) if real is None else real

    def _tally(self, model: TokenSelector, seen: Seen) -> Tally:
        """What is summed and compared over all sequences."""
        output, alpha = seen.output, seen.selected
        tally = Tally(len(alpha))
        tally.add(mass=selected_mass(output.attention, alpha), entropy=entropy(output.attention))
        rows = score_rows(output.scores, alpha, seen.others)
        tally.lower(row=rows)
        for limit, solution in self._solutions.items():
            if solution.rhs is None:
                continue  # each row asks for 1
            asked = solution.rhs[self._parts.rows]
            met = torch.where(asked > 0, rows / asked.clamp_min(1e-300), torch.inf)
            broken = rows.where(asked <= 0, torch.zeros_like(rows))
            tally.lower(**{f"met/{limit}": met, f"broken/{limit}": broken})
        if model.linear:
            logits = output.logits if self.train == "head" else model.logits(seen.chosen)
            tally.every["label"] = label_rows(logits.double(), self._parts.labels)
        if self._parts.data.planted is not None:
            tally.add(planted=alpha == self._parts.data.planted.cpu())
        if seen.gamma is not None:
            self._tally_optimal(model, alpha, seen.gamma, tally)
        return tally

    def _tally_optimal(self, model: TokenSelector, alpha: Tensor, gamma: Tensor, tally: Tally) -> None:
        from lightning_maxmargin.svm import only

        tally.add(globally=globally_optimal(gamma, alpha, self._parts.mask))
        strict = self._solutions.get("strict")
        # A neighbour of a nonlinear head is judged by psi's slope, not by its own score.
        if model.linear and strict is not None and strict.attention.status == "certified":
            support, size = only(strict.attention).support, self.ranks.size
            here = support[support[:, 0] % size == self.ranks.rank]
            tally.add(locally=locally_optimal(gamma, alpha, torch.stack([here[:, 0] // size, here[:, 1]], 1)))

    def start_from(self, part: Probe, rows: Tensor) -> None:
        """Begins where a probe of these rows of the data (m,) is: its SVMs' support is the first guess of ours."""
        from lightning_maxmargin.svm import only

        if self.ranks.size > 1 or not self._parts.in_memory:
            return  # what is solved a block at a time begins anew
        self._solutions = {
            limit: replace(found, attention=_of_all(only(found.attention), rows, self._parts.count))
            for limit, found in part._solutions.items()
        }
        self._head = None if part._head is None else _of_all(part._head, rows, self._parts.count)

    # --- limit problems ---------------------------------------------------------------------------------------

    def _shard(self, x: Tensor, unchanging: bool = False) -> Any:
        """Keys or values of this process, as the solvers take them."""
        from lightning_maxmargin.svm import DistributedShard

        alone = self.ranks.size == 1 and self._parts.in_memory
        return x if alone else DistributedShard(x, self._parts.index, self.ranks, unchanging=unchanging)

    def _chosen(self, chosen: Tensor) -> Any:
        """The values of the selected tokens, likewise: few of all numbers, which one process solves in one piece."""
        from lightning_maxmargin.svm import DistributedShard

        if self.ranks.size == 1 and chosen.numel() <= NUMBERS_IN_MEMORY:
            return chosen
        return DistributedShard(chosen, self._parts.index, self.ranks, at_once=NUMBERS_TO_COPY)

    def _solve(
        self, seen: Seen, moved: bool, model: TokenSelector, norms: Norms, rho: float | None, threads: int
    ) -> None:
        self._selected = seen.selected
        if self.train == "head" and model.linear:
            self._head = self._label_svm(seen, model, norms)
            return
        joint = self.train == "both" and model.linear
        # One for all limits of an evaluation: nothing changes between them.
        keys = self._shard(self._parts.data.keys, unchanging=True)
        if moved:
            self._solutions.pop("rate_coupled", None)
            # Processes ask one another in one order: there the two are solved in turn.
            threads = threads if self.ranks.size == 1 and not self._parts.in_memory else 1
            label = partial(self._label_svm, seen, model, norms) if joint else lambda: self._head
            strict, self._head = beside(partial(self._strict, seen, norms, keys), label, threads)
            self._solutions["strict"] = _joined(strict, self._head, "strict")
        for limit in LIMITS[1:] if joint else ():
            if moved or limit == "rate_coupled":
                self._solve_limit(limit, seen, norms, rho, keys)

    def _label_svm(self, seen: Seen, model: TokenSelector, norms: Norms) -> Solution:
        from lightning_maxmargin.svm import only, solve_label_svm

        # A few sequences may lack a class that the head has.
        classes = None if model.num_classes == 2 else model.num_classes
        warm = None if self._small else self._head
        values = self._chosen(seen.chosen)
        labels = self._parts.labels
        return only(solve_label_svm(values, labels, num_classes=classes, norm=norms.head, warm_start=warm))

    def _strict(self, seen: Seen, norms: Norms, keys: Any) -> Solution:
        from lightning_maxmargin.svm import only, solve_att_svm

        warm = self._before("strict")
        found = solve_att_svm(
            keys, seen.selected, queries=seen.queries, mask=self._parts.mask, norm=norms.attention, warm_start=warm
        )
        return only(found)

    def _before(self, limit: str) -> Solution | None:
        """Takes the attention of the last answer, to begin the next at."""
        from lightning_maxmargin.svm import only

        before = self._solutions.pop(limit, None)
        return None if before is None or self._small else only(before.attention)

    def _solve_limit(self, limit: str, seen: Seen, norms: Norms, rho: float | None, keys: Any) -> None:
        from lightning_maxmargin.svm import only, solve_joint_svm

        warm = self._before(limit)
        if limit == "rate_coupled" and not self._small:
            # Its first problem is the strict one, whose answer is known.
            warm = only(self._solutions["strict"].attention)
        if self._head is not None and self._head.status == "certified" and (rho or limit == "relaxed"):
            self._solutions[limit] = solve_joint_svm(
                keys, seen.chosen, self._parts.labels, seen.selected, limit=limit, norm_ratio=rho,
                norm=norms.attention, head_norm=norms.head, queries=seen.queries, mask=self._parts.mask,
                head=self._head, warm_start=warm,
            )  # fmt: skip

    # --- what is measured -------------------------------------------------------------------------------------

    def _gaps(self, direction: Tensor) -> dict[str, float]:
        """Direction gaps to the certified limits that have one optimum only."""
        gaps = {
            limit: direction_gap(direction, solution.attention.direction)
            for limit, solution in self._solutions.items()
            if solution.attention.status == "certified" and solution.attention.unique
        }
        return {limit: gap for limit, gap in gaps.items() if gap is not None}

    def _relative_margins(self, norm: float, tally: Tally) -> dict[str, float]:
        """By certified limit: the smallest row over its right-hand side per unit norm against the SVM's, or a negative
        row whose right-hand side is 0."""
        from lightning_maxmargin.svm import only

        found: dict[str, float] = {}
        for limit, solution in self._solutions.items():
            met, broken = tally.least.get(f"met/{limit}", tally.least["row"]), tally.least.get(f"broken/{limit}", 0.0)
            best = only(solution.attention)
            if best.status == "certified" and norm > 0:
                relative = relative_margin((min(met, broken) if broken < 0 else met) / norm, best.margin)
                found |= {} if relative is None else {limit: relative}
        return found

    def _nearest(self, gaps: dict[str, float], margins: dict[str, float]) -> str | None:
        """The limit that the attention is nearest to, of equally near ones the first; by the relative margins where no
        limit has one optimum only."""
        if gaps:
            least = min(gaps.values())
            return next(k for k in LIMITS if k in gaps and gaps[k] <= least + TIE)
        if margins:
            largest = max(margins.values())
            return next(k for k in LIMITS if k in margins and margins[k] >= largest - TIE)
        return next(iter(self._solutions), None)

    def _attention(self, norm: float, gaps: dict[str, float], tally: Tally) -> dict[str, Value]:
        from lightning_maxmargin.svm import only

        values: dict[str, Value] = {"margin/attention": tally.least["row"] / norm if norm > 0 else 0.0}
        values |= {f"direction_gap/{limit}": gap for limit, gap in gaps.items()}
        margins = self._relative_margins(norm, tally)
        nearest = self._nearest(gaps, margins)
        if nearest is None:
            return values | {"status/attention": None, "svm/limit": None}
        best = only(self._solutions[nearest].attention)
        return values | {
            "direction_gap/attention": gaps.get(nearest),
            "relative_margin/attention": margins.get(nearest),
            "status/attention": best.status.value,
            "svm/limit": nearest,
            "svm/duality_gap": best.gap,
            "svm/violation": best.violation,
            "svm/support": float(len(best.support)),
        }

    def _label(self, model: TokenSelector, norm: float, tally: Tally) -> dict[str, Value]:
        rows = tally.every["label"] / norm if norm > 0 else torch.zeros_like(tally.every["label"])
        margin = float(rows.min())
        values: dict[str, Value] = {
            "margin/head": margin,
            "margin/head_tenth": float(np.quantile(rows.numpy(), 0.1)),
            "margin/head_met": float((rows > 0).double().mean()),
            "status/head": None,
        }
        if self._head is None:
            return values
        values["status/head"] = self._head.status.value
        if self._head.status == "certified":
            if self._head.unique:
                values["direction_gap/head"] = direction_gap(model.head, self._head.direction)
            values["relative_margin/head"] = relative_margin(margin, self._head.margin)
        return values


def _real(block: Sequences) -> Tensor:
    """Which tokens (m, T) are no padding."""
    return torch.ones(block.keys.shape[:2], dtype=torch.bool) if block.mask is None else block.mask


def _joined(attention: Solution, head: Solution | None, limit: str) -> JointSolution:
    from lightning_maxmargin.svm import JointSolution

    return JointSolution(attention, head or attention, limit=limit)


def _under_norm(values: dict[str, Value]) -> dict[str, Value]:
    """The attention's numbers in its norm, under the names that tell that it is not l2."""
    return {f"{key}/norm": values[f"{key}/attention"] for key in ("relative_margin", "direction_gap")}


def _selection(tally: Tally) -> dict[str, Value]:
    keys = {"mass": "attention/selected_mass", "entropy": "attention/entropy", "planted": "selection/accuracy"}
    keys |= {"globally": "selection/globally_optimal", "locally": "selection/locally_optimal"}
    return {keys[name]: tally.mean(name) for name in tally.sums}


def _of_all(solution: Solution, rows: Tensor, count: int) -> Solution:
    """The solution of a problem of these of ``count`` sequences, with the numbers that its rows have among all."""
    dual, support = solution.dual, solution.support
    whole = dual.new_zeros(count, *dual.shape[1:]).index_copy(0, rows, dual)
    at = rows[support] if support.ndim == 1 else torch.stack([rows[support[:, 0]], support[:, 1]], 1)
    return replace(solution, dual=whole, support=at)


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
