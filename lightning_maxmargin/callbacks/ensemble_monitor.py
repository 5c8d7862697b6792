"""Watches an ensemble: how many instances have converged, where, and how far they are from their SVMs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.keys import Value, measured_by
from lightning_maxmargin.probe.ensemble import EnsembleResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_maxmargin.core.ensemble import EnsembleState
    from lightning_maxmargin.figures.read import Metrics
    from lightning_maxmargin.modules.ensemble import Ensemble

#: Less than this share converged is worth a warning.
MIN_CONVERGED_SHARE = 0.5


class EnsembleMonitor(Monitor):
    """Logs shares and medians of an :class:`Ensemble` at geometrically spaced steps; keys in ``keys.py``.

    Every process measures its own instances, all receive what all have found.

    Args:
        per_decade: evaluations per factor of ten in steps. Each solves the SVMs of all instances.
        budget: as of :class:`~lightning_maxmargin.callbacks.monitor.Monitor`, of the keys of all instances.
        background: likewise.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step``.
        result: the latest :class:`EnsembleResult`, of all processes.
        message: where less than half of the instances have converged.

    Example:
        >>> EnsembleMonitor().last
        {}
    """

    everywhere = True

    sources_of_keys = ("ensemble",)
    headlines = (
        "ensemble/instances", "ensemble/settled", "ensemble/global", "ensemble/local", "ensemble/neither",
        "direction_gap/strict", "direction_gap/rate_coupled", "relative_margin/attention",
    )  # fmt: skip
    curve = "ensemble/settled"

    def __init__(self, per_decade: int = 4, budget: float | None = None, background: bool | None = None) -> None:
        super().__init__(per_decade, budget=budget, background=background)
        self.result: EnsembleResult | None = None
        self._module: Ensemble

    def forget(self) -> None:
        super().forget()
        self.result = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._module = pl_module  # type: ignore[assignment]
        super().on_train_start(trainer, pl_module)

    def size(self) -> Size:
        stack = self._module.stack
        numbers = stack.keys[0].numel() * self._module.count
        return Size(numbers, numbers, f"all {self._module.count:,} instances")

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> EnsembleState:
        return self._module.weights()

    def measure(self, step: int, snapshot: EnsembleState, readings: None) -> Measured:
        return Measured({}, self._module.measure_part(snapshot))

    def join(self, parts: list[EnsembleResult]) -> Measured:
        whole = EnsembleResult.cat(parts)
        return Measured(numbers_of(whole), whole)

    def keep(self, step: int, details: EnsembleResult) -> None:
        self.result = details

    def overview(self, metrics: Metrics) -> Figure | None:
        from lightning_maxmargin.figures.ensemble import GAPS, ensemble_figure

        if self.result is None:
            return None
        gaps = {k: x[self.result.settled & x.isfinite()] for k, x in self.result.direction_gap.items() if k in GAPS}
        return ensemble_figure(metrics, {k: x.double().numpy() for k, x in gaps.items()})

    def diagnose(self, pl_module: pl.LightningModule) -> str:
        converged = self.last.get("ensemble/settled")
        if not isinstance(converged, float) or converged >= MIN_CONVERGED_SHARE:
            return ""
        return (
            f"only {converged:.1%} of the instances have converged after {self.history[-1]['step']} steps: train "
            "longer, or they have no hard selection as their limit; the medians are of these few"
        )


def numbers_of(result: EnsembleResult) -> dict[str, Value]:
    """Every key of ``keys.py`` but the time; None where no converged instance has it."""
    numbers: dict[str, Value] = dict.fromkeys(measured_by("ensemble"))
    numbers |= {k if "/" in k else f"ensemble/{k}": v for k, v in result.shares().items()}
    certified = sum(s == "certified" for s in result.status)
    numbers |= {"ensemble/instances": float(len(result.status))}
    numbers |= {"ensemble/certified": certified / len(result.status)}
    columns = {"relative_margin/attention": result.relative_margin, "norm/attention": result.norm}
    for name, x in {**columns, "norm_ratio": result.norm_ratio}.items():
        known = x[result.settled & x.isfinite()]
        numbers[name] = known.double().median().item() if len(known) else None
    return numbers


def instances_csv(result: EnsembleResult, assigned: dict[str, list[Any]]) -> str:
    """A line per instance: how it was trained (``assigned``), what it selects, whether it converged, how far it is."""
    columns: dict[str, list[Any]] = {
        "instance": list(range(len(result.status))),
        **assigned,
        "status": [*result.status],
    }
    for name in ("settled", "globally_optimal", "locally_optimal", "relative_margin", "norm", "norm_ratio"):
        columns[name] = _plain(getattr(result, name))
    columns |= {f"direction_gap/{k}": _plain(gap) for k, gap in result.direction_gap.items()}
    columns["selected"] = [" ".join(map(str, row)) for row in result.selected.tolist()]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _plain(x: Tensor) -> list[Any]:
    return [int(v) for v in x] if x.dtype == torch.bool else ["" if v != v else v for v in x.tolist()]
