"""What a notebook shows of a data module: its options, and its splits once they are read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_maxmargin.core.show import label_counts, memory
from lightning_maxmargin.html_table import block, faint, paragraph, table, words

if TYPE_CHECKING:
    from lightning_maxmargin.core import Sequences
    from lightning_maxmargin.data.base import SequenceData

NOT_READ = "not read yet: setup(), a trainer or .splits reads them"


def options_of(module: object) -> dict[str, Any]:
    """What a module was made with and keeps under the same name, as far as that is a number or a word."""
    names = inspect.signature(type(module).__init__).parameters
    kept = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {name: x for name, x in kept.items() if x is None or isinstance(x, bool | int | float | str)}


def options_line(options: Mapping[str, Any]) -> object:
    """All of them in a line."""
    return paragraph(faint(", ".join(f"{name}={x!r}" for name, x in options.items()))) if options else ""


def _split_row(name: str, data: Sequences) -> tuple[object, ...]:
    n, T, d = data.keys.shape
    return words(name), f"{n:,}", f"{T:,}", f"{d:,}", label_counts(data.labels), memory(data)


def data_html(module: SequenceData) -> str:
    """Of sequences: nothing is read to be shown."""
    splits = getattr(module, "_splits", None)
    if splits is None:
        body: object = paragraph(NOT_READ)
    else:
        rows = [_split_row(name, data) for name, data in splits.items()]
        body = table(rows, ("split", "sequences", "tokens", "dimensions", "labels", "memory"))
    about = paragraph(f"{getattr(module, 'num_classes', 2)} labels") if splits is None else ""
    return block(type(module).__name__, options_line(options_of(module)), about, body)
