"""Texts with their words shaded, to be shown in a notebook or printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lightning_maxmargin.figures.windows import MAX_TOKENS
from lightning_maxmargin.figures.words import shades
from lightning_maxmargin.html_table import block, faint, paragraph, text, writable

#: Okabe and Ito's blue and vermilion, as in the report.
BACKGROUNDS = {"for": "0,114,178", "against": "213,94,0"}
#: Of the opacity that the report has on white: on dark pages light text stays readable.
STRENGTH = 0.75
#: Words that a printed line names.
NAMED = 6


def shaded_words(words: Sequence[str], weights: Sequence[float], evidence: Sequence[float] | None = None) -> Markup:
    """The words as HTML, the heaviest darkest; of a long text those around it.

    Args:
        words: n texts.
        weights: (n,), of the attention.
        evidence: (n,), negative against; all blue where None.

    Example:
        >>> "rgba(0,114,178" in shaded_words(["rare", "charm"], [0.9, 0.1])
        True
    """
    heaviest = max(range(len(words)), key=lambda i: weights[i], default=0)
    first = max(0, min(heaviest - MAX_TOKENS // 2, len(words) - MAX_TOKENS))
    drawn = shades(words, weights, [0.0] * len(words) if evidence is None else evidence)[first : first + MAX_TOKENS]
    after = len(words) - first - len(drawn)
    parts = [] if not first else [faint(f"… {first:,} before ")]
    for word in drawn:
        if not word.side:
            parts.append(Markup('<bdi title="{}">{}</bdi>').format(text(word.title), text(word.text)))
            continue
        shade = f"rgba({BACKGROUNDS[word.side]},{STRENGTH * float(word.opacity):.3f})"
        style = f"background:{shade};border-radius:3px;padding:1px 2px"
        parts.append(Markup('<bdi style="{}" title="{}">{}</bdi>').format(style, text(word.title), text(word.text)))
    parts += [] if not after else [faint(f" … {after:,} behind")]
    return Markup(" ").join(parts)


@dataclass(frozen=True)
class ShadedText:
    """A text and what its words weigh.

    Attributes:
        title: what stands before it.
        words: n texts.
        weights: (n,).
        evidence: (n,), for or against; None where there is none.
    """

    title: str
    words: list[str]
    weights: list[float]
    evidence: list[float] | None = None

    def __str__(self) -> str:
        heavy = sorted(range(len(self.words)), key=lambda i: -self.weights[i])[:NAMED]
        named = ", ".join(f"{writable(self.words[i])} {self.weights[i]:.2f}" for i in heavy if self.weights[i] >= 0.01)
        return f"{writable(self.title)}: {writable(' '.join(self.words))}\n  {named}"


@dataclass(frozen=True)
class ShadedTexts:
    """Several of them, shown by a notebook with their words shaded and printed with the heaviest named.

    Attributes:
        caption: whose attention it is.
        texts: in their order.
    """

    caption: str
    texts: list[ShadedText]

    def __str__(self) -> str:
        return "\n".join([writable(self.caption), *map(str, self.texts)])

    __repr__ = __str__

    def __len__(self) -> int:
        return len(self.texts)

    def _repr_html_(self) -> str:
        rows = [
            paragraph(Markup("{} {}").format(faint(x.title), shaded_words(x.words, x.weights, x.evidence)))
            for x in self.texts
        ]
        return block(self.caption, *rows)
