"""The tables of ``maxmargin evaluate``."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

AGREEMENT = {
    "both_right": "both right", "auprc": "AUPRC", "r_precision": "R-precision", "token_f1": "token F1",
    "iou_f1": "IOU F1",
}  # fmt: skip
FAITHFUL = {
    "comprehensiveness/head": "compr. head", "sufficiency/head": "suff. head",
    "comprehensiveness/normalised": "compr. norm.", "sufficiency/normalised": "suff. norm.",
    "comprehensiveness/input": "compr. input", "sufficiency/input": "suff. input",
}  # fmt: skip


def print_tables(table: dict[str, Any]) -> None:
    """Accuracy and agreement with marked words, then faithfulness.

    Args:
        table: as ``maxmargin evaluate --output`` writes it.
    """
    console = Console()
    rows = table["rows"]
    shown = {key: label for key, label in AGREEMENT.items() if any(row.get(key) is not None for row in rows)}
    console.print(_agreement(table, shown))
    if "auprc" in shown:
        few = {row["marked_documents"]: row["method"] for row in rows}
        console.print(f"AUPRC and what follows: on {max(few)} documents with marked words; in brackets 95 % intervals.")
        for count in sorted(few)[:-1]:
            names = ", ".join(row["method"] for row in rows if row["marked_documents"] == count)
            console.print(f"{names}: on {count} of them.")
    console.print(_faithful(table))
    bins = ", ".join(f"{100 * share:g}" for share in table["bins"])
    console.print(
        f"AOPC over {bins} % of the {table['units']}, each method on the model it explains, on "
        f"{table['faithfulness_documents']} of {table['documents']} documents (--documents). Comprehensiveness: higher is "
        "better; sufficiency: lower. norm.: at the head, 0 to 1 between the least and the greatest of any order, which "
        "alone compares models. input: what is left of the text is encoded again."
    )


def _agreement(table: dict[str, Any], shown: dict[str, str]) -> Table:
    drawn = Table(title=f"{table['run']} on {table['data']}", title_justify="left")
    for name in ("rationale", "accuracy", *shown.values()):
        drawn.add_column(name)
    known: set[str] = set()
    for row in table["rows"]:
        # Of a model once.
        of_model = [_cell(row, key) for key in ("accuracy", "both_right") if key == "accuracy" or key in shown]
        if row["model"] in known:
            of_model = [""] * len(of_model)
        known.add(row["model"])
        drawn.add_row(row["method"], *of_model, *(_cell(row, key) for key in shown if key != "both_right"))
    return drawn


def _faithful(table: dict[str, Any]) -> Table:
    drawn = Table(title="faithfulness", title_justify="left")
    for name in ("rationale", "of the model", *FAITHFUL.values()):
        drawn.add_column(name)
    for row in table["rows"]:
        drawn.add_row(row["method"], row["model"], *(_cell(row, key) for key in FAITHFUL))
    return drawn


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    interval = row.get(f"{key}/interval")
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
