"""What a command leaves behind: checkpoint, summary, report and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_maxmargin.callbacks import MarginMonitor
from lightning_maxmargin.data import SequenceData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.module import JointSelection
from lightning_maxmargin.names import LIMITS
from lightning_maxmargin.runs import versions, write_summary, write_text


def finish_fit(
    trainer: pl.Trainer, model: JointSelection, data: SequenceData, run_dir: Path, config: Any, seconds: float
) -> None:
    """Checkpoint and test on all processes; summary, report and table on the first."""
    if config.trainer.enable_checkpointing is not False:
        trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    monitor = next(c for c in trainer.callbacks if isinstance(c, MarginMonitor))  # type: ignore[attr-defined]
    steps = trainer.global_step
    tested: dict[str, Any] = {}
    if data.sequences("test") is not None:
        tested = dict(trainer.test(model, datamodule=data, verbose=False)[0])
    if not trainer.is_global_zero:
        return
    values = {
        **monitor.last, **tested,
        "name": config.name, "gradient": model.gradient, "message": monitor.message, "steps": steps,
        "seconds": seconds, "versions": versions(),
    }  # fmt: skip
    summary = write_summary(run_dir, values)
    save_paths(monitor, model, data, run_dir / "paths.npz")
    page = None
    if config.report:
        from lightning_maxmargin.figures.report import write_report

        page = write_report(run_dir)
    print_summary(summary, monitor, run_dir, page)


def print_summary(summary: dict[str, Any], monitor: MarginMonitor, run_dir: Path, page: Path | None) -> None:
    """The table at the end of fit."""
    table = Table(title=str(summary["name"]), show_header=False, title_justify="left")
    for label, text in _lines(summary, monitor):
        table.add_row(label, text)
    console = Console(soft_wrap=False)
    console.print(table)
    if summary["message"]:
        console.print(f"[bold]note[/bold] {summary['message']}")
    # Paths unwrapped, to be copied.
    print(f"run {run_dir}" if page is None else f"report {page}")


def _lines(summary: dict[str, Any], monitor: MarginMonitor) -> list[tuple[str, str]]:
    gaps = ", ".join(f"{k.replace('_', '-')} {_number(summary[f'direction_gap/{k}'])}" for k in LIMITS)
    lines = [
        ("nearest limit", str(summary["svm/limit"]).replace("_", "-")),
        ("status (attention, head)", f"{summary['status/attention'] or '-'}, {summary['status/head'] or '-'}"),
        ("direction gap, attention", gaps),
        ("direction gap, head", _number(summary["direction_gap/head"])),
        ("relative margin (attention, head)", f"{_margin(summary['relative_margin/attention'])}, {_margin(summary['relative_margin/head'])}"),
        ("norm (attention, head)", f"{_number(summary['norm/attention'])}, {_number(summary['norm/head'])}"),
    ]
    selected = None if monitor.snapshot is None else monitor.snapshot.selected.tolist()
    if summary["selection/accuracy"] is not None:
        lines.append(("selection accuracy (train, test)", f"{_margin(summary['selection/accuracy'])}, {_margin(summary['test/selection/accuracy'])}"))
    elif selected is not None:
        shown = " ".join(map(str, selected[:20])) + (" ..." if len(selected) > 20 else "")
        lines.append(("selected tokens", shown))
    if summary["test/accuracy"] is not None:
        lines.append(("test accuracy", _margin(summary["test/accuracy"])))
    lines.append(("steps, seconds", f"{summary['steps']}, {summary['seconds']:.1f} (monitor {summary['monitor/seconds'] or 0:.1f})"))
    return lines


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2e}"


def _margin(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def save_paths(monitor: MarginMonitor, model: JointSelection, data: SequenceData, path: Path) -> None:
    """Paths and SVM rays of a two-dimensional problem, for the figure; nothing for others."""
    train, snapshot = data.sequences("train"), monitor.snapshot
    if not monitor.paths or snapshot is None or train is None:
        return
    z = None if train.queries is None or snapshot.direction.ndim == 1 else train.queries.double()

    def rays(direction: Tensor) -> np.ndarray:
        return (direction[None] if z is None else z @ direction.T).numpy()

    arrays = {
        "step": np.array([step for step, _, _ in monitor.paths]),
        "attention": np.stack([rays(p) for _, p, _ in monitor.paths]),
        "keys": train.keys.double().numpy(),
        "labels": train.labels.numpy(),
        "selected": snapshot.selected.numpy(),
        "mask": np.ones(train.keys.shape[:2], bool) if train.mask is None else train.mask.numpy(),
    }
    if train.values is not train.keys:
        arrays["values"] = train.values.double().numpy()
    for limit, solution in snapshot.solutions.items():
        if solution.attention.status == "certified":
            arrays[f"svm/{limit}"] = rays(solution.attention.direction)
    if snapshot.head.shape == (2,) and model.train_part != "attention":
        arrays["head"] = np.stack([v.numpy() for _, _, v in monitor.paths])
        strict = snapshot.solutions.get("strict")
        if strict is not None and strict.head.status == "certified" and strict.head.direction.shape == (2,):
            arrays["svm/head"] = strict.head.direction.numpy()
    np.savez(path, **arrays)


def print_metrics(trainer: pl.Trainer) -> None:
    """The metrics of validate and test as a table."""
    if trainer.is_global_zero:
        table = Table(show_header=False)
        for key, value in trainer.callback_metrics.items():
            table.add_row(key, f"{float(value):.4f}")
        Console().print(table)


def refuse_existing(path: Path) -> None:
    """Raises InputError where the output file is there already."""
    if path.exists():
        raise InputError(f"output: {path} exists and is never overwritten; name another file with --output")


def write_predictions(path: Path, batches: list[dict[str, Tensor]]) -> None:
    """One JSON object per sequence: index, logits, attention, selected."""
    lines = []
    for batch in batches:
        for i in range(len(batch["index"])):
            lines.append(json.dumps({k: v[i].tolist() for k, v in batch.items()}))
    write_text(path, "".join(line + "\n" for line in lines))
    print(path)
