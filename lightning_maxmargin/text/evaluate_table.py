"""The tables of ``maxmargin evaluate``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ACCURACY = {"accuracy": "accuracy", "both_right": "both right"}
AGREEMENT = {"auprc": "AUPRC", "r_precision": "R-prec.", "token_f1": "token F1", "iou_f1": "IOU F1"}
FAITHFUL = {
    "comprehensiveness/head": "compr. head", "sufficiency/head": "suff. head",
    "comprehensiveness/normalised": "compr. norm.", "sufficiency/normalised": "suff. norm.",
    "comprehensiveness/input": "compr. input", "sufficiency/input": "suff. input",
}  # fmt: skip


def print_tables(table: dict[str, Any]) -> None:
    """Accuracy of the models, agreement of rationales with marked words, and faithfulness.

    Args:
        table: as ``maxmargin evaluate --output`` writes it.
    """
    console = Console()
    rows = table["rows"]
    console.print(f"{table['run']} on {table['documents']} documents of {table['data']}", markup=False, soft_wrap=True)
    models = {row["model"]: row for row in reversed(rows)}
    console.print(_drawn("model", dict(reversed(models.items())), ACCURACY))
    if any(row["auprc"] is not None for row in rows):
        console.print(_drawn("agreement with marked words", _by_name(rows), AGREEMENT))
        _print_counts(console, rows)
    console.print(_drawn("faithfulness", _by_name(rows), FAITHFUL))
    bins = ", ".join(f"{100 * share:g}" for share in table["bins"])
    console.print(
        f"AOPC over {bins} % of the {table['units']}, on {table['faithfulness_documents']} of {table['documents']} "
        "documents (--documents): each of the model that it explains, gradients of mean-pool, random and --scores of "
        "the selector. Comprehensiveness: higher is better; sufficiency: lower. norm.: at the head, from 0 to 1 "
        "between the least and the greatest of any order; only these compare models. input: what is left of the text "
        "is encoded again."
    )


def _by_name(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in rows}


def _print_counts(console: Console, rows: list[dict[str, Any]]) -> None:
    """On how many documents AUPRC is."""
    counts = sorted({row["marked_documents"] for row in rows})
    fewer = [f"; {', '.join(row['method'] for row in rows if row['marked_documents'] == n)}: {n}" for n in counts[:-1]]
    text = f"Brackets: 95 % bootstrap intervals. Documents with marked words: {counts[-1]}{''.join(fewer)}."
    console.print(text, markup=False)


def _drawn(title: str, rows: Mapping[str, dict[str, Any]], columns: Mapping[str, str]) -> Table:
    """Columns that no row has a number in are left out."""
    shown = {key: label for key, label in columns.items() if any(row.get(key) is not None for row in rows.values())}
    table = Table()
    table.add_column(title, no_wrap=True)
    for label in shown.values():
        table.add_column(label)
    for name, row in rows.items():
        table.add_row(escape(name), *(_cell(row, key) for key in shown))
    return table


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    interval = row.get(f"{key}/interval")
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
