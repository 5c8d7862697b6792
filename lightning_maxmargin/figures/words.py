"""Documents with their words shaded: by weight, in the colour of what each says for or against the label."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from lightning_maxmargin.figures.examples import MAX_TOKENS
from lightning_maxmargin.figures.read import Example

#: Shares of the heaviest word's weight below which a word stays plain.
FAINT = 0.02
#: Characters that HTML drops or that draw nothing, as the pictures that Unicode has of them.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


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


def visible(text: str) -> str:
    """The text with NUL and other control characters made visible, one for one; line ends stay.

    Example:
        >>> visible("a\\x00b")
        'a␀b'
    """
    return CONTROL.sub(lambda m: "\u2421" if m[0] == "\x7f" else chr(0x2400 + ord(m[0])), text.replace("\r\n", " \n"))


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
    first = max(0, min(example.selected - MAX_TOKENS // 2, len(example.tokens) - MAX_TOKENS))
    last = min(len(example.tokens), first + MAX_TOKENS)
    evidence = example.evidence or [0.0] * len(example.tokens)
    drawn = shades(example.tokens, example.attention, evidence)[first:last]
    outcome = {True: "right", False: "wrong", None: "no prediction"}[example.right]
    facts = numbers(example.probability, example.lead, example.entropy)
    after = len(example.tokens) - last
    return Document(
        example.index,
        visible(str(example.label)),
        visible(str(example.prediction)),
        outcome,
        facts,
        drawn,
        first,
        after,
    )


def numbers(probability: float | None, lead: float | None, entropy: float | None) -> list[str]:
    """What is known of a document, in words.

    Example:
        >>> numbers(0.9, None, 1.25)
        ['probability 0.90', 'entropy 1.25']
    """
    known = {"probability": probability, "lead": lead, "entropy": entropy}
    return [f"{name} {x:.2f}" for name, x in known.items() if isinstance(x, int | float) and math.isfinite(x)]
