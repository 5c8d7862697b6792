"""Documents with their words shaded: by weight, in the colour of what each says for or against the label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_maxmargin.figures.read import Example
from lightning_maxmargin.figures.windows import in_view, shorten, shown_name, visible

#: Shares of the heaviest word's weight below which a word stays plain.
FAINT = 0.02
#: Characters of a word of the report.
LONGEST_WORD = 600


class Shade(NamedTuple):
    """A word as it is drawn: opacity is of the colour of its class, ``for`` or ``against``."""

    text: str
    side: str
    opacity: str
    title: str


class Document(NamedTuple):
    """A document of the report, as text."""

    number: int
    label: str
    prediction: str
    outcome: str
    facts: list[str]
    words: list[Shade]
    before: int
    after: int


def shades(words: Sequence[str], weights: Sequence[float], evidence: Sequence[float]) -> list[Shade]:
    """Words with their colours: the heaviest of the document is darkest, whatever its weight.

    Args:
        words: n texts.
        weights: (n,).
        evidence: (n,), negative against the predicted label.

    Example:
        >>> [shade.side for shade in shades(["fine", "but", "dull"], [0.6, 0.0, 0.4], [1.0, 0.1, -1.0])]
        ['for', '', 'against']
    """
    clean = [w if math.isfinite(w) and w > 0 else 0.0 for w in weights]
    most = max(clean, default=0.0) or 1.0
    return [_shade(word, w, w / most, e) for word, w, e in zip(words, clean, evidence, strict=True)]


def _shade(word: str, weight: float, share: float, evidence: float) -> Shade:
    if share < FAINT:
        return Shade(visible(word), "", "0", f"weight {weight:.3f}")
    side = "for" if evidence >= 0 else "against"
    # 0.85 keeps the text readable on it.
    return Shade(visible(word), side, f"{0.85 * share:.3f}", f"weight {weight:.3f}, {side} the prediction")


def document(example: Example) -> Document:
    """A row of the report's table; of a long document the words around the heaviest."""
    first, last = in_view(example.tokens, example.selected)
    evidence = example.evidence or [0.0] * len(example.tokens)
    drawn = shades(example.tokens, example.attention, evidence)[first:last]
    outcome = {True: "right", False: "wrong", None: "no prediction"}[example.right]
    return Document(
        example.index,
        shown_name(str(example.label)),
        shown_name(str(example.prediction)),
        outcome,
        numbers(example.probability, example.lead, example.entropy, example.size),
        [shade._replace(text=shorten(shade.text, LONGEST_WORD)) for shade in drawn],
        first,
        len(example.tokens) - last,
    )


def numbers(
    probability: float | None, lead: float | None, entropy: float | None, size: float | None = None
) -> list[str]:
    """What is known of a document, in words.

    Example:
        >>> numbers(0.9, None, 1.25)
        ['probability 0.90', 'entropy 1.25']
    """
    known = {"probability": probability, "lead": lead, "entropy": entropy, "|f|": size}
    return [f"{name} {x:.2f}" for name, x in known.items() if isinstance(x, int | float) and math.isfinite(x)]
