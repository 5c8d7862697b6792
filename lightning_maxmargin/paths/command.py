"""``maxmargin path``: a regularisation path from a config to a table, a figure and files in a new run directory."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence as ListOf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lightning_maxmargin.text  # noqa: F401  (so that --data knows its classes by their bare names)
from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import SequenceData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.paths.path import RegularizationPath, regularization_path
from lightning_maxmargin.run.directory import make_run_dir, plan_run_dir, versions
from lightning_maxmargin.run.parsers import path_parser


def path(args: ListOf[str]) -> None:
    """Solves a regularisation path: a table, path.csv, path.json and figure.png in a new run directory.

    Args:
        args: argv after ``maxmargin path``.

    Raises:
        InputError: settings that do not fit each other or the data.
    """
    parser = path_parser(SequenceData)
    config = parser.parse_args(list(args))
    source = parser.instantiate_classes(config).data
    data = source.sequences("train")
    head = _head(config.head, source)
    selected = None if config.selected is None else _tokens(config.selected, data)
    folder = plan_run_dir(config.run_dir, config.name)
    found = regularization_path(
        data, config.radii, head=head, loss=config.loss, selected=selected, cone=config.cone,
        starts=config.starts, seed=config.seed,
    )  # fmt: skip
    rows = table_rows(found, data, selected)
    make_run_dir(folder)
    text = parser.dump(config, skip_unset=False).splitlines()
    write_text(folder / "config.yaml", "\n".join(t for t in text if not t.startswith(("run_dir:", "config:"))) + "\n")
    _write(folder, found, rows, config)
    _draw(found, rows, config.name, folder / "figure.png")
    _print(rows, config.name)
    print(f"path {folder}")


def table_rows(found: RegularizationPath, data: Sequences, selected: Tensor | None = None) -> list[dict[str, Any]]:
    """One row per radius: norms, gaps to the SVMs of the tokens selected at the largest radius, losses, certificate.

    Args:
        found: the path.
        data: that it is of.
        selected: the tokens whose SVMs to take instead.
    """
    data = data.to(torch.float64)
    alpha = found.selected[int(found.radii.reshape(len(found.radii), -1)[:, -1].argmax())]
    rows = []
    for k in range(len(found.radii)):
        r = found.radii[k].reshape(-1).tolist()
        p = found.attention[k]
        row: dict[str, Any] = {"head_radius": r[0] if len(r) == 2 else None, "radius": r[-1]}
        row["angle"] = math.degrees(math.atan2(p[1], p[0])) if p.shape == (2,) else None
        ends = _limits(found, data, alpha if selected is None else selected, r)
        for name in ("strict", "relaxed", "rate_coupled"):
            row[f"gap_{name}"] = None if name not in ends else direction_gap(p, ends[name])
        row["gap_head"] = (
            None if found.head is None or "head" not in ends else direction_gap(found.head[k], ends["head"])
        )
        row |= {"loss": float(found.loss[k]), "log_loss": _finite(float(found.log_loss[k]))}
        row |= {"residual": float(found.residual[k]), "status": found.status[k]}
        rows.append(row | {"selected": " ".join(map(str, found.selected[k, :20].tolist()))})
    return rows


def _limits(found: RegularizationPath, data: Sequences, alpha: Tensor, radii: list[float]) -> dict[str, Tensor]:
    """Directions of the certified SVMs."""
    from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm

    if found.head is not None:
        ends = {}
        for limit in ("strict", "relaxed", "rate_coupled"):
            joint = solve_joint_svm(
                data.keys, data.values, data.labels, alpha, limit=limit, norm_ratio=radii[0] / radii[1],
                queries=data.queries, mask=data.mask,
            )  # fmt: skip
            if joint.attention.status == "certified":
                ends[limit] = joint.attention.direction
            if joint.head.status == "certified":
                ends["head"] = joint.head.direction
        return ends
    svm = solve_att_svm(data.keys, alpha, queries=data.queries, mask=data.mask)
    return {"strict": svm.direction} if svm.status == "certified" else {}


def _head(head: str | list[float], source: SequenceData) -> Tensor | None:
    if head == "none":
        return None
    if head == "data":
        if source.head is None:
            raise InputError("head: 'data' needs data that come with a head; give numbers, or none for a joint path")
        return source.head
    return torch.tensor(head, dtype=torch.float64)


def _tokens(selected: list[int], data: Sequences) -> Tensor:
    if len(selected) != len(data) or not all(0 <= t < data.keys.shape[1] for t in selected):
        n, T = data.keys.shape[:2]
        raise InputError(f"selected: {selected} are no tokens of {n} sequences; give {n} numbers from 0 to {T - 1}")
    return torch.tensor(selected)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _write(folder: Path, found: RegularizationPath, rows: list[dict[str, Any]], config: Any) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "path.csv", text.getvalue())
    heads = [None] * len(rows) if found.head is None else found.head.tolist()
    points = [
        {**row, "attention": p, "head": v} for row, p, v in zip(rows, found.attention.tolist(), heads, strict=True)
    ]
    content = {"name": config.name, "loss": config.loss, "points": points, "versions": versions()}
    write_text(folder / "path.json", json.dumps(content, indent=2) + "\n")


def _print(rows: list[dict[str, Any]], name: str) -> None:
    shown = [k for k in rows[0] if k != "selected" and any(row[k] is not None for row in rows)]
    table = Table(title=name, title_justify="left")
    for key in shown:
        table.add_column(key.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(x if isinstance(x := row[k], str) else "-" if x is None else f"{x:.4g}" for k in shown))
    Console(width=max(150, Console().width)).print(table)


def _draw(found: RegularizationPath, rows: list[dict[str, Any]], name: str, target: Path) -> None:
    """Gaps to the SVMs, and residuals, by radius; pairs of radii stand side by side."""
    from lightning_maxmargin.figures.style import COLORS, DASHES, FLOOR, NAMES, new_figure, save, style_axes, suptitle

    figure = new_figure(4.0)
    joint = found.head is not None
    x = np.arange(len(rows)) if joint else found.radii.numpy()
    order = np.argsort(x)
    gaps, residuals = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for key in ("strict", "relaxed", "rate_coupled", "head"):
        y = np.array([row[f"gap_{key}"] for row in rows], float)[order]
        if np.isfinite(y).any():
            line = {"color": COLORS[key], "linestyle": DASHES[key], "marker": "o", "markersize": 3.5}
            gaps.plot(x[order], np.maximum(y, FLOOR), label=f"gap to {NAMES[key]} SVM", **line)
    y = np.array([row["residual"] for row in rows])[order]
    residuals.plot(x[order], np.maximum(y, FLOOR), color=COLORS["attention"], marker="o", markersize=3.5)
    for ax in (gaps, residuals):
        ax.set_yscale("log")
        if joint:
            ax.set_xticks(x, [f"{row['head_radius']:g}, {row['radius']:g}" for row in rows], rotation=30)
        else:
            ax.set_xscale("log")
    under = "radii r of v, R of p" if joint else "radius R"
    style_axes(gaps, "direction gap to the SVMs", under, "1 − cos")
    style_axes(residuals, "residual: sine of the angle from −grad", under, "residual")
    suptitle(figure, f"Regularisation path: {name}", 4)
    save(figure, target)
