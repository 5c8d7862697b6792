"""Text examples for the report: which ones to show, and how each token is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

from lightning_maxmargin.figures.read import Example
from lightning_maxmargin.figures.style import format_number
from lightning_maxmargin.figures.windows import in_view, shorten, shown_name, visible

#: Examples that stand in the page as text: more are read by its script.
MAX_EXAMPLES = 20
#: Characters of a token.
LONGEST_TOKEN = 600


class Token(NamedTuple):
    """One token as it is drawn."""

    text: str
    opacity: str
    classes: str
    title: str


@dataclass(frozen=True)
class Shown:
    """One row of the table of examples, as text."""

    index: int
    label: str
    prediction: str
    outcome: str
    selection: str
    tokens: list[Token]
    before: int
    after: int


def choose(examples: list[Example], most: int = MAX_EXAMPLES) -> list[Example]:
    """At most ``most`` examples, in turn from the mis-selected, the wrong and the right ones; by index."""
    groups: dict[str, list[Example]] = {"mis": [], "wrong": [], "right": []}
    for e in examples:
        mis = e.planted is not None and e.planted != e.selected
        groups["wrong" if e.right is False else "mis" if mis else "right"].append(e)
    turns = chain.from_iterable(zip_longest(*groups.values()))
    return sorted([e for e in turns if e is not None][:most], key=lambda e: e.index)


def counts(examples: list[Example]) -> str:
    """How many there were, as text."""
    right, wrong = (sum(e.right is truth for e in examples) for truth in (True, False))
    planted = [e for e in examples if e.planted is not None]
    text = f"{len(examples):,} example{'s' if len(examples) != 1 else ''}: {right:,} predicted right, {wrong:,} wrong"
    if planted:
        found = sum(e.planted == e.selected for e in planted)
        text += f"; the planted token is selected in {found:,} of {len(planted):,}"
    return text


def show(example: Example) -> Shown:
    """One row of the table."""
    first, last = in_view(example.tokens, example.selected)
    outcome = {True: "right", False: "wrong", None: "no prediction"}[example.right]
    selection = ""
    if example.planted is not None:
        selection = "planted token selected" if example.planted == example.selected else "another token selected"
    label = _label(example)
    tokens = [_token(example, t) for t in range(first, last)]
    after = len(example.tokens) - last
    return Shown(example.index, label, _prediction(example), outcome, selection, tokens, first, after)


def _label(example: Example) -> str:
    if isinstance(example.label, str):
        return f"label {shown_name(example.label)}"
    return f"class {example.label:g}" if example.by_class else f"label {example.label:+g}".replace("-", "−")


def _prediction(example: Example) -> str:
    if example.prediction is None:
        return "logit —"
    if isinstance(example.prediction, str):
        return f"predicted {shown_name(example.prediction)}"
    if example.by_class:
        return f"predicted class {example.prediction}"
    return f"logit {example.prediction:+.2f}".replace("-", "−")


def _token(example: Example, t: int) -> Token:
    weight = example.attention[t]
    weight = min(max(weight, 0.0), 1.0) if math.isfinite(weight) else 0.0
    names = [n for n, at in (("selected", example.selected), ("planted", example.planted)) if at == t]
    title = f"attention {format_number(weight)}" + "".join(f", {n}" for n in names)
    text = shorten(visible(example.tokens[t]), LONGEST_TOKEN)
    if not text.strip():
        names.append("empty")
        text = "(empty)"
    # Below 1/255 the colour is white anyway; 0.85 keeps dark text on it readable.
    return Token(text, f"{0.85 * weight:.3f}", " ".join(names), title)
