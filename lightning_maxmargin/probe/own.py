"""Numbers and limit problems of the user's own, measured beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.core.model import Output
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value, is_ours, register_key
from lightning_maxmargin.metrics import direction_gap

#: ``metric(model, data, output, selected)``: a number, or None where it is undefined.
OwnMetric = Callable[[TokenSelector, Sequences, Output, Tensor], float | None]
#: ``limit(data, selected)``: a solution with ``status``, ``direction`` and ``margin``, as the solvers of ``svm`` give.
#: One that also has ``achieved(direction)``, the margin of a unit direction, gets a relative margin; those of
#: ``svm.solve_rows`` and ``svm.solve_cvxpy`` have it.
OwnLimit = Callable[[Sequences, Tensor], Any]


class OwnNumbers:
    """Measures a user's metrics and limit problems; a limit is solved again only when a selected token changes.

    Args:
        metrics: by key.
        limits: by name: ``mine`` gives ``direction_gap/mine`` and ``relative_margin/mine``.

    Raises:
        InputError: one is no function, or has the key of a number that is measured already.
    """

    def __init__(self, metrics: Mapping[str, OwnMetric] | None, limits: Mapping[str, OwnLimit] | None) -> None:
        self.metrics, self.limits = dict(metrics or {}), dict(limits or {})
        for name, metric in self.metrics.items():
            _check_function("metrics", name, metric, "metric(model, data, output, selected)")
            if is_ours(name):
                raise InputError(f"metrics: {name!r} is measured already; choose another key")
        for name, limit in self.limits.items():
            _check_function("limits", name, limit, "limit(data, selected)")
            if is_ours(f"direction_gap/{name}"):
                raise InputError(f"limits: {name!r} is a limit of this package; choose another name")
        self._selected: Tensor | None = None
        self._solutions: dict[str, Any] = {}
        for name in self.limits:
            register_key(f"direction_gap/{name}", f"the same to the limit {name!r} of your own", format="gap",
                         axis="norm/attention", best="min")  # fmt: skip
            register_key(f"relative_margin/{name}", f"margin of the attention over that of {name!r}; 1 is optimal",
                         format="near one", best="max")  # fmt: skip

    def values(self, model: TokenSelector, data: Sequences, output: Output, selected: Tensor) -> dict[str, Value]:
        """Every number of the user's own, now.

        Args:
            model: in float64 on the CPU.
            data: likewise; limits get it with the queries that the model has.
            output: of the model on the data.
            selected: (n,), alpha.
        """
        found: dict[str, Value] = {
            name: _number(name, metric(model, data, output, selected)) for name, metric in self.metrics.items()
        }
        if self.limits and (self._selected is None or not torch.equal(selected, self._selected)):
            seen = data.with_queries(model.queries(data))
            shape = tuple(model.direction.shape)
            self._solutions = {n: _checked(n, limit(seen, selected), shape) for n, limit in self.limits.items()}
            self._selected = selected
        for name, solution in self._solutions.items():
            found |= {f"direction_gap/{name}": None, f"relative_margin/{name}": None}
            norm = model.direction.norm()
            if solution.status != "certified" or norm == 0:
                continue
            found[f"direction_gap/{name}"] = direction_gap(model.direction, solution.direction)
            if hasattr(solution, "achieved"):
                achieved = solution.achieved(model.direction / norm)
                if achieved is not None:
                    found[f"relative_margin/{name}"] = float(achieved) / float(solution.margin)
        return found


def _check_function(where: str, name: str, found: object, form: str) -> None:
    if not callable(found):
        raise InputError(f"{where}: {name!r} is a {type(found).__name__}; expected a function {form}")


def _number(name: str, found: Any) -> float | None:
    try:
        return None if found is None else float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {list(found.shape)}" if isinstance(found, Tensor) else ""
        raise InputError(
            f"metrics: {name!r} returned a {type(found).__name__}{shape}; expected a number or None"
        ) from error


def _checked(name: str, solution: Any, shape: tuple[int, ...]) -> Any:
    """A solution of the user's own, if it has what is measured and is one of this model."""
    lacks = [part for part in ("status", "direction", "margin") if not hasattr(solution, part)]
    if lacks:
        raise InputError(
            f"limits: {name!r} returned a {type(solution).__name__} that lacks {', '.join(lacks)}; return what "
            "svm.solve_cvxpy, svm.solve_rows or solve_att_svm returns"
        )
    if not isinstance(solution.direction, Tensor) or tuple(solution.direction.shape) != shape:
        found = getattr(solution.direction, "shape", None)
        given = type(solution.direction).__name__ if found is None else list(found)
        raise InputError(f"limits: {name!r}: its direction is {given}; the model's is a tensor {list(shape)}")
    return solution
