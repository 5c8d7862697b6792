"""Rationales computed elsewhere: a JSON line for each test document, with scores of its words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.plain import objects, whole_text
from lightning_maxmargin.text.units import word_spans

FORMS = 'expected {"scores": [...]} a number for each word, the same with "spans", or a line of maxmargin predict'


def read_scores(path: str | Path, split: Split) -> dict[int, Tensor]:
    """Scores (u,) of the words (or sentences) of each document.

    A line is an object in one of three forms: ``scores``, a number for each word (what stands between spaces);
    ``scores`` and ``spans``, half-open spans of characters, whose scores are summed in the word that each begins in;
    or ``words`` with ``span`` and ``weight``, as ``maxmargin predict`` writes them. A line without any of them is a
    document without a rationale.

    Args:
        path: as many lines as documents, in their order.
        split: the documents.

    Raises:
        InputError: another number of lines, or a line that does not fit its document.
    """
    try:
        rows = objects(whole_text(Path(path)), str(path))
    except InputError as error:
        raise InputError(f"scores: {error}") from error
    if len(rows) != len(split):
        raise InputError(
            f"scores: {path}: {len(rows)} lines for {len(split)} test documents; give one a document, in order"
        )
    found = {}
    for i, row in enumerate(rows):
        parts = _parts(row, split.documents.texts[i], f"scores: {path}, line {i + 1}")
        if parts is not None:
            found[i] = _by_unit(*parts, split, i)
    return found


def _parts(row: dict[str, Any], text: str, where: str) -> tuple[np.ndarray, Tensor] | None:
    """Spans (m, 2) and their scores (m,)."""
    try:
        if row.get("words") is not None:
            spans: Any = [word["span"] for word in row["words"]]
            scores = [word["weight"] for word in row["words"]]
        elif row.get("scores") is not None:
            scores = row["scores"]
            spans = row["spans"] if row.get("spans") is not None else word_spans(text)
        else:
            return None
        places = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
        numbers = torch.tensor([float(score) for score in scores], dtype=torch.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: no scores that can be read ({type(error).__name__}: {error}); {FORMS}") from error
    if len(places) != len(numbers):
        raise InputError(f"{where}: {len(numbers)} scores for {len(places)} words or spans; give one for each")
    if not all(map(math.isfinite, numbers.tolist())):
        raise InputError(f"{where}: a score is not finite; expected numbers")
    return places, numbers


def _by_unit(spans: np.ndarray, scores: Tensor, split: Split, i: int) -> Tensor:
    """Sums (u,); what stands behind the end of a truncated text, or in a word that was dropped, is left out."""
    units = np.asarray(split.unit_spans(i), dtype=np.int64).reshape(-1, 2)
    total = torch.zeros(len(units), dtype=torch.float64)
    for start, score in zip(spans[:, 0].tolist(), scores.tolist(), strict=True):
        k = int(np.searchsorted(units[:, 1], start, side="right"))
        if k < len(units) and start >= units[k, 0]:
            total[k] += score
    return total
