"""The documents of a page as its script reads them: few bytes each, and as many as the page has room for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_maxmargin.figures.read import Example
from lightning_maxmargin.figures.windows import shorten, shown_name, visible, window

#: Bytes of a page, whatever the documents.
PAGE_BYTES = 3_000_000
#: Bytes of a document's words, from what nobody misses to what still tells something; the first that fits is taken.
LEVELS = (12_000, 4_000, 2_000, 1_000, 500, 250)
#: What a word's two numbers take beside its letters.
NUMBERS_OF_A_WORD = 9
OUTCOMES = {True: "right", False: "wrong", None: "no prediction"}


class Column(NamedTuple):
    """A column of the table of documents.

    Attributes:
        name: its head.
        kind: ``text``, ``number`` or ``outcome``.
        meaning: of the head, a sentence.
        filter: whether a menu chooses among its values.
    """

    name: str
    kind: str
    meaning: str = ""
    filter: bool = False


@dataclass(frozen=True)
class Reading:
    """The words of a document as one model reads them.

    Attributes:
        words: n texts.
        weights: (n,) shares of the attention.
        evidence: (n,), or None where it is not known.
        marked: numbers of the words that people marked, or that were planted.
        selected: number of the heaviest word.
    """

    words: Sequence[str]
    weights: Sequence[float]
    evidence: Sequence[float] | None
    marked: Sequence[int]
    selected: int


class Row(NamedTuple):
    """A document: a value for each column, and its words as each of the models reads them."""

    cells: list[Any]
    readings: list[Reading]


class Fitted(NamedTuple):
    """Rows in a number of bytes.

    Attributes:
        rows: as JSON has them.
        left_out: documents for which there was no room.
        cut: documents of which only some words are there.
    """

    rows: list[Any]
    left_out: int
    cut: int


def example_rows(examples: Sequence[Example]) -> tuple[list[Column], list[Row]]:
    """Columns and rows of a run's examples; a column without a value is left out.

    Example:
        >>> one = Example(7, "good", "good", ["so", "fine"], [0.1, 0.9], 1, None, [0.0, 2.0], lead=0.5)
        >>> columns, rows = example_rows([one])
        >>> [column.name for column in columns], rows[0].cells
        (['no.', 'label', 'prediction', 'outcome', 'lead'], [7, 'good', 'good', 'right', 0.5])
    """
    wanted: list[tuple[Column, Callable[[Example], Any]]] = [
        (Column("no.", "number", "number of the document in its file"), lambda e: e.index),
        (Column("label", "text", "the label of the document", True), lambda e: _named(e.label)),
        (Column("prediction", "text", "the label that the model gives it", True), _prediction),
        (Column("logit", "number", "of the prediction"), lambda e: e.prediction if _is_logit(e) else None),
        (Column("outcome", "outcome", "right or wrong", True), lambda e: OUTCOMES[e.right]),
        (Column("selection", "outcome", "whether the planted token is selected", True), _selection),
        (Column("probability", "number", "of the predicted label"), lambda e: e.probability),
        (Column("lead", "number", "how stable the selection is"), lambda e: e.lead),
        (Column("entropy", "number", "how few words decided: small is few"), lambda e: e.entropy),
        (Column("|f|", "number", "largest logit less the second"), lambda e: e.size),
    ]
    kept = [(column, value) for column, value in wanted if any(value(e) is not None for e in examples)]
    rows = [Row([rounded(value(e)) for _, value in kept], [_reading(e)]) for e in examples]
    return [column for column, _ in kept], rows


def _named(label: float | str) -> str:
    return shown_name(label) if isinstance(label, str) else f"{label:g}"


def _is_logit(e: Example) -> bool:
    return not (isinstance(e.prediction, str) or e.by_class or e.prediction is None)


def _prediction(e: Example) -> str | None:
    return None if _is_logit(e) or e.prediction is None else _named(e.prediction)


def _selection(e: Example) -> str | None:
    return None if e.planted is None else "planted token" if e.planted == e.selected else "another token"


def _reading(e: Example) -> Reading:
    marked = [*(e.rationale or []), *([] if e.planted is None else [e.planted])]
    return Reading(e.tokens, e.attention, e.evidence, marked, e.selected)


def rounded(value: Any) -> Any:
    """Four digits of a number, None of one that is not finite; anything else as it is.

    Example:
        >>> rounded(0.123456), rounded(float("nan")), rounded("a")
        (0.1235, None, 'a')
    """
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else None


def fit(rows: Sequence[Row], room: int) -> Fitted:
    """As many of the rows as have room, with as many words of each around its heaviest as then go in.

    Every document is there before any has more words: only where each with the least number of words is too much, the
    last ones are left out.

    Args:
        rows: the documents.
        room: bytes.
    """
    for level in LEVELS:
        found: list[Any] = []
        cut = used = 0
        for row in rows:
            packed, is_cut = _packed(row, level)
            size = json_bytes(packed) + 1
            if used + size > room:
                break
            found.append(packed)
            cut, used = cut + is_cut, used + size
        if len(found) == len(rows) or level == LEVELS[-1]:
            return Fitted(found, len(rows) - len(found), cut)
    raise AssertionError("LEVELS is empty")


def json_bytes(value: Any) -> int:
    """Bytes of the value in a page, as :func:`~lightning_maxmargin.figures.assets.as_json` writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "replace")) + 5 * text.count("<")


def _packed(row: Row, room: int) -> tuple[list[Any], bool]:
    """A row for JSON: its cells, and of each reading what :func:`pack` gives."""
    parts = [pack(reading, room // len(row.readings)) for reading in row.readings]
    return [row.cells, *(part for part, _ in parts)], any(is_cut for _, is_cut in parts)


def pack(reading: Reading, room: int) -> tuple[list[Any], bool]:
    """Words, weights in thousandths, evidence in hundredths of its largest, that largest, marked words, words before
    and after; and whether anything is cut.

    Example:
        >>> pack(Reading(["so", "fine"], [0.1, 0.9], [-1.0, 2.0], [1], 1), 1_000)
        ([['so', 'fine'], [100, 900], [-50, 100], 2.0, [1], 0, 0], False)
    """
    longest = max(room // 4, 40)
    words = [shorten(visible(word), longest) for word in reading.words]
    first, last = window([len(w.encode("utf-8", "replace")) + NUMBERS_OF_A_WORD for w in words], reading.selected, room)
    weights = [round(1000 * min(max(w, 0.0), 1.0)) if math.isfinite(w) else 0 for w in reading.weights[first:last]]
    evidence = [x if math.isfinite(x) else 0.0 for x in (reading.evidence or [])[first:last]]
    most = max(map(abs, evidence), default=0.0)
    shares = [round(100 * (x / most)) if most > 0 else 0 for x in evidence]
    marked = sorted({i - first for i in reading.marked if first <= i < last})
    after = len(words) - last
    cut = first > 0 or after > 0 or any(len(w) > longest for w in reading.words)
    return [words[first:last], weights, shares, rounded(most), marked, first, after], cut
