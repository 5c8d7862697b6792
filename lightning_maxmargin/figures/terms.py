"""What the words of a page mean, one sentence each: those of the glossary, and the keys of the run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup, escape

from lightning_maxmargin.keys import find_key

GLOSSARY = {
    "accuracy": "share of the documents whose predicted label is theirs",
    "attention": "the weights, summing to 1, in which the words of a document are averaged for the head",
    "AUPRC": "area under precision and recall of the words by weight, against the words that people marked; 1 is best",
    "certified": "a dual solution proves that no direction has a larger margin",
    "confidence interval": "the middle 95 % of the value over bootstrap samples of the documents",
    "decides": "a word decides a document where it has more than half of its attention",
    "direction gap": "half the squared distance between two unit vectors, 1 − cos: 0 is the same direction",
    "entropy": "of the attention, in nats: the smaller, the fewer words decided; 0 is one word alone",
    "evidence": "what a word says for the predicted label, less its mean over the labels; negative speaks against",
    "|f|": "largest logit less the second: how far the prediction is from another label",
    "infeasible": "proved that no direction puts every selected word ahead of the others",
    "lead": "best score less the second, over the norm of the weights: how stable the selection is",
    "McNemar's test": "how likely so uneven a split of the documents that one model alone gets right is by chance",
    "mean pooling": "a logistic regression on the mean of a document's words, without attention",
    "most frequent label": "what one gets by giving every document the label that most of them have",
    "nearest limit": "which of the max-margin directions the weights have come closest to",
    "probability": "of the predicted label, from the logits; it grows with |f|",
    "rationale": "the words that people marked as the reason for the label",
    "relative margin": "margin of the trained weights over the largest possible one; 1 is the optimum",
    "selected token": "the word with the largest weight",
    "unverified": "a direction was found, and no proof that it is the best",
    "weight": "share of the document's attention that a word has",
    "weight × evidence": "how much a word moved the prediction towards its label, or away from it",
}  # fmt: skip


class Meaning(NamedTuple):
    """A line of the index: its anchor, the word, the sentence, and whether the page links to it."""

    anchor: str
    word: str
    sentence: str
    linked: bool


def anchor_of(word: str) -> str:
    """The end of an address for a word.

    Example:
        >>> anchor_of("direction_gap/strict"), anchor_of("weight × evidence"), anchor_of("|f|")
        ('direction_gap-strict', 'weight-evidence', 'f')
    """
    return re.sub(r"\W+", "-", word).strip("-")


class Terms:
    """Links of one page from words to their meanings, and the index at its end that leads back.

    Example:
        >>> terms = Terms()
        >>> print(terms("lead"))
        <a class="term" href="#term-lead" id="use-lead">lead</a>
        >>> [(row.word, row.linked) for row in terms.index(["steps"])]
        [('lead', True), ('steps', False)]
    """

    def __init__(self) -> None:
        self._linked: set[str] = set()

    def __call__(self, word: str, text: str | None = None) -> Markup:
        """The word, or another text in its place, linked to its meaning; as it is where it has none."""
        shown = escape(word if text is None else text)
        if word not in GLOSSARY and find_key(word) is None:
            return shown
        anchor = anchor_of(word)
        first = Markup("") if word in self._linked else Markup(' id="use-{}"').format(anchor)
        self._linked.add(word)
        return Markup('<a class="term" href="#term-{}"{}>{}</a>').format(anchor, first, shown)

    def index(self, keys: Iterable[str]) -> list[Meaning]:
        """What the page links to and these keys, in the order of the alphabet; to be called at the end of the page."""
        found = {}
        for name in [*self._linked, *keys]:
            key = find_key(name)
            if name in GLOSSARY or key is not None:
                found[name] = GLOSSARY[name] if key is None else key.meaning
        return [
            Meaning(anchor_of(word), word, found[word], word in self._linked)
            for word in sorted(found, key=lambda w: w.casefold().lstrip("|"))
        ]
