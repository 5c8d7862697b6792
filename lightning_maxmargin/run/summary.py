"""What a fit leaves in its run directory beside its checkpoint: summary.json and, in two dimensions, the paths."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from lightning_maxmargin.atomic import whole, write_text
from lightning_maxmargin.callbacks.ensemble_monitor import EnsembleMonitor, instances_csv
from lightning_maxmargin.callbacks.head_monitor import HeadMonitor
from lightning_maxmargin.callbacks.head_output import heads_file_of, token_names, tokenizer_of
from lightning_maxmargin.callbacks.interrupt import Interrupt
from lightning_maxmargin.callbacks.margin_monitor import MarginMonitor
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.keys import measured_by
from lightning_maxmargin.probe.selector import Snapshot
from lightning_maxmargin.run.directory import versions


class RunSummary(Callback):
    """Writes at the end of fit, inside the training processes: with ``ddp_fork`` the numbers never leave them.

    Args:
        run_dir: the run directory.
        name: of the run.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir, self.name = run_dir, name

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        values: dict[str, Any] = {}
        for monitor in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(monitor, Monitor):
                message = " ".join(filter(None, (values.get("message"), monitor.message)))
                values |= {"gradient": getattr(pl_module, "gradient", None), **monitor.last, "message": message}
            if isinstance(monitor, MarginMonitor) and monitor.snapshot is not None:
                values["selection/tokens"] = first_tokens(monitor.snapshot.selected.tolist())
                self._write_paths(pl_module, monitor, monitor.snapshot)
            elif isinstance(monitor, HeadMonitor) and monitor.rows:
                # A module of the user's own: what it logged itself counts as much.
                values = {**_own_numbers(trainer), **values}
                self._write_heads(trainer, pl_module, monitor)
            elif isinstance(monitor, EnsembleMonitor):
                values["gradient"] = "exact"
                self._write_instances(pl_module, monitor)
        if not values:
            return
        if any(isinstance(c, Interrupt) and c.stopped for c in trainer.callbacks):  # type: ignore[attr-defined]
            values["message"] = f"{interrupted_at(trainer)} {values['message']}".rstrip()
        write_summary(self.run_dir, {**values, "name": self.name, "steps": trainer.global_step, "versions": versions()})

    def _write_paths(self, pl_module: pl.LightningModule, monitor: MarginMonitor, snapshot: Snapshot) -> None:
        if monitor.paths:
            train_head = getattr(pl_module, "train_part", "both") != "attention"
            arrays = path_arrays(monitor.paths, snapshot, monitor.sequences, train_head)
            with whole(self.run_dir / "paths.npz") as part, part.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

    def _write_heads(self, trainer: pl.Trainer, pl_module: pl.LightningModule, monitor: HeadMonitor) -> None:
        tokenizer = tokenizer_of(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        # Of all positions a row is a position's: the first rows are of other samples than the first.
        of_positions = monitor.query_token == "all"
        tokens = [] if of_positions else token_names(monitor.batches(), monitor.maps, tokenizer)
        text = json.dumps(heads_file_of(monitor.rows, monitor.history, tokens), ensure_ascii=False)
        write_text(self.run_dir / "heads.json", text + "\n", errors="replace")

    def _write_instances(self, pl_module: pl.LightningModule, monitor: EnsembleMonitor) -> None:
        if monitor.result is not None:
            text = instances_csv(monitor.result, pl_module.assigned())  # type: ignore[operator]
            write_text(self.run_dir / "instances.csv", text)


def _own_numbers(trainer: pl.Trainer) -> dict[str, float]:
    """What the module has logged, as of its last logging."""
    return {name: float(x) for name, x in trainer.callback_metrics.items() if x.numel() == 1}


def interrupted_at(trainer: pl.Trainer) -> str:
    """In words, where somebody has stopped the run."""
    of = f" of {trainer.max_steps:,}" if trainer.max_steps >= 0 else ""
    return f"Interrupted at step {trainer.global_step:,}{of}."


def first_tokens(selected: list[int], most: int = 20) -> str:
    """The first selected tokens as text.

    Example:
        >>> first_tokens([1, 0, 2], most=2)
        '1 0 ...'
    """
    return " ".join(map(str, selected[:most])) + (" ..." if len(selected) > most else "")


def path_arrays(
    paths: list[tuple[int, Tensor, Tensor]], snapshot: Snapshot, data: Sequences, train_head: bool
) -> dict[str, np.ndarray]:
    """Paths and SVM rays in the plane, for the figure: p or every W z_i, and v where it is trained and in the plane."""
    z = None if snapshot.direction.ndim == 1 or data.queries is None else data.queries.double()

    def rays(direction: Tensor) -> np.ndarray:
        return (direction[None] if z is None else z @ direction.T).numpy()

    arrays = {
        "step": np.array([step for step, _, _ in paths]),
        "attention": np.stack([rays(p) for _, p, _ in paths]),
        "keys": data.keys.double().numpy(),
        "labels": data.labels.numpy(),
        "selected": snapshot.selected.numpy(),
        "mask": np.ones(data.keys.shape[:2], bool) if data.mask is None else data.mask.numpy(),
    }
    if data.values is not data.keys and data.values.shape[2] == 2:
        arrays["values"] = data.values.double().numpy()
    for limit, solution in snapshot.solutions.items():
        if solution.attention.status == "certified":
            arrays[f"svm/{limit}"] = rays(solution.attention.direction)
    if train_head and snapshot.head.shape == (2,):
        arrays["head"] = np.stack([v.numpy() for _, _, v in paths])
        strict = snapshot.solutions.get("strict")
        if strict is not None and strict.head.status == "certified" and strict.head.direction.shape == (2,):
            arrays["svm/head"] = strict.head.direction.numpy()
    return arrays


def write_summary(run_dir: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Writes ``summary.json`` and returns it: every key of a run, null where undefined, and what else was measured."""
    summary = {key: plain(values.get(key)) for key in measured_by("selector", "ensemble", "run")}
    summary |= {key: plain(value) for key, value in values.items() if key not in summary}
    write_text(run_dir / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def plain(value: Any) -> float | int | str | None:
    """The value as JSON has it: no NaN, and no infinity."""
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
