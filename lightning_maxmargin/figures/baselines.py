"""What a run on text is held against: whatever its directory knows of baselines, and the command for the others."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.headline import most_frequent
from lightning_maxmargin.figures.read import EVALUATED, RunFiles

#: What ``evaluate`` calls models that have another name here.
NAMES = {"mean-pool": "mean pooling"}
COLUMNS = {"test": "test accuracy", "val": "validation accuracy", "auprc": "AUPRC"}


class BaselineRow(NamedTuple):
    """A model and its numbers, as text."""

    name: str
    cells: list[str]


def baseline_context(run: RunFiles, confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Rows and columns of the table, and the commands that give more rows where ``evaluate`` was not run.

    Args:
        run: of documents.
        confusion: (K, K) documents by label and prediction, of the test or else of validation.
    """
    corpus = run.corpus or {}
    pool = corpus["mean_pool"]
    of = "val" if run.test is None else "test"
    rows: list[tuple[str, dict[str, str]]] = [
        ("this run", _known(test=run.number("test/accuracy"), val=corpus["accuracy"].get("val"),
                            auprc=run.number("rationale/auprc"))),
        ("mean pooling", _known(val=pool["accuracy"]["val"] if pool else None)),
        ("most frequent label", _known(**{of: most_frequent(confusion)})),
    ]  # fmt: skip
    rows += _evaluated_rows(run)
    found = _merged(rows)
    shown = [key for key in COLUMNS if any(key in cells for cells in found.values())]
    folder = shlex.quote(str(run.run_dir))
    output = shlex.quote(str(run.run_dir / EVALUATED))
    return {
        "baseline_columns": [COLUMNS[key] for key in shown],
        "baselines": [
            BaselineRow(name, [cells.get(key, "") for key in shown]) for name, cells in found.items() if cells
        ],
        "evaluate_command": "" if run.evaluated else f"maxmargin evaluate {folder} --output {output}",
        "report_command": f"maxmargin report {folder}",
    }


def _known(**numbers: float | None) -> dict[str, str]:
    return {key: f"{x:.3f}" for key, x in numbers.items() if x is not None}


def _evaluated_rows(run: RunFiles) -> list[tuple[str, dict[str, str]]]:
    try:
        return [_evaluated(row) for row in (run.evaluated or {}).get("rows", [])]
    except (KeyError, TypeError, ValueError) as error:
        what = f"{run.run_dir / EVALUATED} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"report: {what}; remove it, or write it again with `maxmargin evaluate`") from error


def _evaluated(row: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """A row of ``maxmargin evaluate``: AUPRC of each way to weigh words, accuracy of each model but the run's own."""
    cells, is_model = {}, row["method"] == row["model"]
    for key, name in (("test", "accuracy"), ("auprc", "auprc")):
        if row[name] is not None and (is_model or key == "auprc"):
            low, high = row[f"{name}/interval"]
            cells[key] = f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"
    return NAMES.get(row["method"], str(row["method"])), cells


def _merged(rows: list[tuple[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
    """One row a name; of what two of them say the first stays."""
    found: dict[str, dict[str, str]] = {}
    for name, cells in rows:
        found[name] = cells | found.get(name, {})
    return found
