"""The table of tokens that W&B gets: each text as one reads it, its words shaded by weight."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from lightning_maxmargin.figures.words import Shade, shades, visible

#: Of what speaks for the prediction, and against it.
COLOURS = {"for": "30,110,200", "against": "210,90,30"}
#: What a text may have beside, in the order of the columns.
BESIDE = ("probability", "lead", "entropy", "planted")


def token_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells of the table; ``shaded`` is HTML.

    Args:
        rows: of ``tokens.jsonl``.

    Example:
        >>> row = {"index": 0, "label": "good", "prediction": "good", "tokens": ["so", "fine"], "attention": [0.1, 0.9],
        ...        "selected": 1}
        >>> columns, [cells] = token_table([row])
        >>> dict(zip(columns, cells))["text"], "fine</span>" in dict(zip(columns, cells))["shaded"]
        ('so fine', True)
    """
    beside = [name for name in BESIDE if any(row.get(name) is not None for row in rows)]
    columns = ["index", "label", "prediction", "text", "shaded", "selected", "weight", *beside]
    return columns, [[*_cells(row), *(row.get(name) for name in beside)] for row in rows]


def _cells(row: dict[str, Any]) -> list[Any]:
    words, weights, at = row["tokens"], row["attention"], row["selected"]
    drawn = shades(words, weights, row.get("evidence") or [0.0] * len(words))
    shaded = " ".join(_span(shade, i == at) for i, shade in enumerate(drawn))
    chosen = (words[at], weights[at]) if at < len(words) else ("", None)
    texts = (" ".join(map(visible, words)), f'<p dir="auto">{shaded}</p>')
    return [row["index"], str(row["label"]), str(row["prediction"]), *texts, *chosen]


def _span(shade: Shade, is_selected: bool) -> str:
    outline = "outline:2px solid #111;" if is_selected else ""
    colour = f"background:rgba({COLOURS[shade.side]},{shade.opacity});" if shade.side else ""
    return f'<span style="{colour}{outline}" title="{html.escape(shade.title)}">{html.escape(shade.text)}</span>'


def log_tokens(loggers: Iterable[Logger], rows: Sequence[dict[str, Any]], step: int) -> None:
    """Gives the W&B loggers among these the table, under ``tokens``."""
    found = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if not found or not rows:
        return
    import wandb

    columns, cells = token_table(rows)
    at = columns.index("shaded")
    for row in cells:
        row[at] = wandb.Html(row[at], inject=False)
    for logger in found:
        logger.log_table("tokens", columns=columns, data=cells, step=step)
