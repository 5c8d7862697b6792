"""Which of several models to take: the least sum of ranks by what was measured without test documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import rankdata

from lightning_maxmargin.errors import InputError

#: What runs are ranked by, as columns are called.
NAMES = {"accuracy": "validation accuracy", "lead": "median lead", "auprc": "AUPRC"}


def rank_sums(numbers: Mapping[str, Sequence[float | None]], by: str) -> list[float]:
    """Ranks (1 is the greatest number) by all of ``by``, summed; equal numbers share their mean rank.

    Args:
        numbers: by name, one of each model; None counts as 0.
        by: names with ``+`` between them.

    Example:
        >>> rank_sums({"accuracy": [0.9, 0.8, 0.7], "lead": [0.1, 0.3, 0.2]}, "accuracy+lead")
        [4.0, 3.0, 5.0]
    """
    ranks = [rankdata([-(x or 0.0) for x in numbers[name]]) for name in by.split("+")]
    return sum(ranks[1:], ranks[0]).tolist()


def select(folders: Sequence[str], by: str) -> dict[str, Any]:
    """The finished run whose ranks sum to the least; of equal sums the more accurate, then the first.

    Args:
        folders: of runs that ended.
        by: ``accuracy``, ``lead`` or ``accuracy+lead``.

    Raises:
        InputError: a folder is no finished run on text.
    """
    rows = [_measured(Path(folder)) for folder in folders]
    sums = rank_sums({name: [row[name] for row in rows] for name in ("accuracy", "lead")}, by)
    best = min(range(len(rows)), key=lambda i: (sums[i], -(rows[i]["accuracy"] or 0.0), i))
    ranked = [{"run": folder, **row, "rank_sum": x} for folder, row, x in zip(folders, rows, sums, strict=True)]
    return {"by": by, "chosen": folders[best], "runs": ranked}


def _measured(folder: Path) -> dict[str, float | None]:
    try:
        corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return {"accuracy": float(corpus["accuracy"]["val"]), "lead": summary["margin/median_lead"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no finished run on text; it has no corpus.json and summary.json to read"
        ) from error


def print_choice(found: Mapping[str, Any]) -> None:
    """The table of runs, and which one is chosen."""
    by = found["by"].split("+")
    table = Table()
    for column in ("run", *(NAMES[name] for name in by), *(["sum of ranks"] if len(by) > 1 else [])):
        table.add_column(column)
    for row in found["runs"]:
        numbers = ["-" if row[name] is None else f"{row[name]:.3f}" for name in by]
        table.add_row(escape(row["run"]), *numbers, *([f"{row['rank_sum']:g}"] if len(by) > 1 else []))
    Console().print(table)
    print(f"{found['chosen']}, by {' and '.join(NAMES[name] for name in by)}")
