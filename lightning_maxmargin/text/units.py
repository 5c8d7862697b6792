"""Word pieces, words and sentences of a text as spans of its characters, and which unit each piece belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError

UNITS = ("pieces", "words", "sentences")
WORD = re.compile(r"\S+")
#: Where syntok fails: after a full stop, and at blank lines.
BREAK = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)]))\s+|\n\s*\n""")
IDEOGRAPHIC = re.compile("[。！？]+[”’」』）]*")  # syntok ends a sentence only where a space follows
AHEAD = 2000  # characters after the last piece that sentences are looked for in: a tokenizer truncates long texts

Spans = list[tuple[int, int]]


@dataclass(frozen=True)
class Units:
    """The n units of a text of T pieces.

    Attributes:
        ids: T numbers, the unit of each piece; -1 for special tokens and for pieces without a character but space.
        spans: n half-open spans of characters, without space at their ends.
    """

    ids: list[int]
    spans: Spans


def units_of(text: str, offsets: Sequence[tuple[int, int]], special: Sequence[int], units: str = "words") -> Units:
    """The units that the word pieces of a text belong to, in the order of the text.

    Words are what stands between spaces, whatever a tokenizer makes of punctuation, as in maps that people mark; in a
    script without spaces that is a whole run of characters, so choose pieces or sentences there. Sentences are
    syntok's, looked for up to 2,000 characters behind the last piece. A piece over several units belongs to the first;
    a unit without a piece is dropped, as behind the end of a truncated text.

    Args:
        text: of any length.
        offsets: T half-open spans of characters, of a fast tokenizer (``return_offsets_mapping=True``).
        special: T numbers, not 0 for special tokens (``return_special_tokens_mask=True``).
        units: ``pieces``, ``words`` or ``sentences``.

    Raises:
        InputError: there are no such units, or ``special`` is not as long as ``offsets``.

    Example:
        >>> units_of("It's fun.", [(0, 0), (0, 2), (2, 4), (5, 8), (8, 9), (0, 0)], [1, 0, 0, 0, 0, 1])
        Units(ids=[-1, 0, 0, 1, 1, -1], spans=[(0, 4), (5, 9)])
    """
    if units not in UNITS:
        raise InputError(f"data.units: {units!r}; expected one of {', '.join(UNITS)}")
    if len(special) != len(offsets):
        raise InputError(f"data: {len(offsets)} offsets of pieces and {len(special)} marks of special ones")
    words = word_spans(text)
    pieces, real = _trimmed(np.asarray(offsets, dtype=np.int64).reshape(-1, 2), words)
    real &= np.asarray(special, dtype=np.int64) == 0
    if units == "pieces":
        ids = np.where(real, real.cumsum() - 1, -1)
        return Units(ids.tolist(), list(map(tuple, pieces[real].tolist())))
    whole = words
    if units == "sentences":
        seen = text[: int(pieces[real, 1].max(initial=0)) + AHEAD]
        whole = np.asarray(sentence_spans(seen), dtype=np.int64).reshape(-1, 2)
    # Every piece lies, by its first character, in a word, and that in a sentence.
    ids = np.where(real, np.searchsorted(whole[:, 1], pieces[:, 0], side="right"), -1)
    kept, ids[real] = np.unique(ids[real], return_inverse=True)
    return Units(ids.tolist(), list(map(tuple, whole[kept].tolist())))


def word_spans(text: str) -> np.ndarray:
    """(n, 2) int64, the maximal runs of characters that are no space.

    Example:
        >>> word_spans(" one  two").tolist()
        [[1, 4], [6, 9]]
    """
    return np.array([match.span() for match in WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)


def sentence_spans(text: str) -> Spans:
    """The sentences by syntok, without space at their ends; together they hold every character that is no space.

    Those of Chinese and Japanese end at their own full stops as well.

    Example:
        >>> sentence_spans("Mr. Bean is fun. Is it? ")
        [(0, 16), (17, 23)]
    """
    starts = _starts(text)
    spans = np.array([starts, [*starts[1:], len(text)]], dtype=np.int64).T
    trimmed, real = _trimmed(spans, word_spans(text))
    return list(map(tuple, trimmed[real].tolist()))


def marked(spans: Spans, rationale: Spans, text: str | None = None) -> list[bool]:
    """Which of n units hold a character of a rationale.

    Args:
        spans: n half-open spans of units.
        rationale: half-open spans in any order, which may overlap.
        text: of which they are spans; with it a space in common does not count, which matters to sentences alone.

    Example:
        >>> marked([(0, 3), (4, 8)], [(3, 5)]), marked([(0, 8)], [(3, 4)], text="the film")
        ([False, True], [False])
    """
    given = np.asarray(rationale, dtype=np.int64).reshape(-1, 2)
    if text is not None:
        given, real = _trimmed(given, word_spans(text))
        given = given[real]
    given = given[given[:, 0] < given[:, 1]]
    given = given[np.argsort(given[:, 0])]
    units = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    # A unit is met if, of the spans that start before its end, one ends after its start.
    furthest = np.concatenate([[-1], np.maximum.accumulate(given[:, 1])])
    return (furthest[np.searchsorted(given[:, 0], units[:, 1])] > units[:, 0]).tolist()


def sum_by(ids: Sequence[int] | Tensor, values: Tensor, n: int) -> Tensor:
    """The sums over the pieces of each unit: of attention of pieces, the attention of words.

    Args:
        ids: (..., T), the unit of each piece; -1 for none.
        values: (..., T).
        n: units.

    Returns:
        (..., n)

    Raises:
        ValueError: the shapes differ, or an id is not between -1 and n - 1.

    Example:
        >>> sum_by([-1, 0, 0, 1], torch.tensor([0.5, 0.25, 0.125, 0.125]), 2).tolist()
        [0.375, 0.125]
    """
    index = torch.as_tensor(ids, dtype=torch.long, device=values.device)
    if index.shape != values.shape:
        raise ValueError(f"ids {list(index.shape)} and values {list(values.shape)} are of different shapes")
    if index.numel() and (int(index.min()) < -1 or int(index.max()) >= n):
        raise ValueError(f"ids from {int(index.min())} to {int(index.max())}; expected -1 to {n - 1}")
    sums = values.new_zeros(*values.shape[:-1], n + 1)
    return sums.scatter_add(-1, index.where(index >= 0, n), values)[..., :n]


def _trimmed(spans: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans (n, 2) without space at their ends, and which of them (n,) hold something else."""
    if not len(words):
        return spans, np.zeros(len(spans), dtype=bool)
    first = np.searchsorted(words[:, 1], spans[:, 0], side="right")
    last = np.searchsorted(words[:, 0], spans[:, 1], side="left") - 1
    starts = np.maximum(spans[:, 0], words[first.clip(max=len(words) - 1), 0])
    ends = np.minimum(spans[:, 1], words[last.clip(min=0), 1])
    return np.stack([starts, ends], axis=1), (first <= last) & (spans[:, 0] < spans[:, 1])


def _starts(text: str) -> list[int]:
    """Where sentences start, ascending, the first at 0."""
    from syntok import segmenter

    try:
        paragraphs = segmenter.analyze(text)
        starts = [sentence[0].offset for paragraph in paragraphs for sentence in map(list, paragraph) if sentence]
    # Whatever a text of this kind makes it raise.
    except Exception:
        starts = []
    ascending = all(a < b for a, b in pairwise(starts))
    if not starts or not ascending or starts[-1] >= len(text) or starts[0] < 0:
        starts = [match.end() for match in BREAK.finditer(text)]
    more = (match.end() for match in IDEOGRAPHIC.finditer(text))
    return [0, *sorted({start for start in (*starts, *more) if 0 < start < len(text)})]
