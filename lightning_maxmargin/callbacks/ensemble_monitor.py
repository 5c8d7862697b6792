"""Watches an ensemble: how many instances have converged, where, and how far they are from their SVMs."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from lightning_maxmargin.keys import check_registered, measured_by
from lightning_maxmargin.probe.ensemble import EnsembleResult
from lightning_maxmargin.schedule import next_step

#: Less than this share converged is worth a warning.
MIN_CONVERGED_SHARE = 0.5


class EnsembleMonitor(Callback):
    """Logs shares and medians of an :class:`Ensemble` at geometrically spaced steps; keys in ``keys.py``.

    Args:
        per_decade: evaluations per factor of ten in steps. Each solves the SVMs of all instances.

    Attributes:
        last: the latest numbers by key.
        result: the latest :class:`EnsembleResult`, of all processes.
        message: where less than half of the instances have converged.

    Example:
        >>> EnsembleMonitor().last
        {}
    """

    def __init__(self, per_decade: int = 4) -> None:
        self.per_decade = per_decade
        self.last: dict[str, float | None] = {}
        self.result: EnsembleResult | None = None
        self.message = ""
        self.seconds = 0.0
        self._seen = -1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        pl_module.pause_at = next_step(trainer.global_step, self.per_decade)  # type: ignore[assignment]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step >= int(pl_module.pause_at or 0) or trainer.global_step == trainer.max_steps:  # type: ignore[arg-type]
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and self._seen != trainer.global_step:
            self.evaluate(trainer, pl_module)
        converged = self.last.get("ensemble/settled")
        if converged is not None and converged < MIN_CONVERGED_SHARE:
            self.message = (
                f"only {converged:.1%} of the instances have converged after {trainer.global_step} steps: train "
                "longer, or they have no hard selection as their limit; the medians are of these few"
            )

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures now, on all processes, and logs."""
        start = time.perf_counter()
        self.result = pl_module.measure()  # type: ignore[operator]
        assert self.result is not None
        self._seen = trainer.global_step
        self.seconds += time.perf_counter() - start
        self.last = {**numbers_of(self.result), "monitor/seconds": self.seconds}
        check_registered(self.last)
        known = {k: v for k, v in self.last.items() if v is not None}
        for logger in trainer.loggers:
            logger.log_metrics(known, step=trainer.global_step)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in known.items()})


def numbers_of(result: EnsembleResult) -> dict[str, float | None]:
    """Every key of ``keys.py`` but the time; None where no converged instance has it."""
    numbers: dict[str, float | None] = dict.fromkeys(measured_by("ensemble"))
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
