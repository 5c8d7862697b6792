"""What the numbers of attention heads mean, in two or three sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lightning_maxmargin.keys_of_heads import heads_of, short_names

#: Attention on one token above which a head selects it: more than on all others together.
SELECTS = 0.5
#: Share of the SVM's margin below which nothing is selected: for some query the two best tokens are as good as tied.
TIED = 1e-2
#: Share of the SVM's margin from which a selection is near the limit.
NEAR = 0.5
#: Share of the queries from which a head attends to one place whatever the input.
ALWAYS = 0.9
#: Heads that a sentence names.
MOST_NAMED = 4


class Groups(NamedTuple):
    """The heads of a module by what they do; a head is in several."""

    open: dict[str, str]
    soft: list[str]
    tied: list[str]
    selecting: list[str]
    near: list[str]
    first: list[str]
    last: list[str]


def heads_in_words(last: Mapping[str, object]) -> str:
    """How many heads select, stay soft or are sinks, and which have no certified SVM; empty where there are no heads.

    Args:
        last: the numbers of a HeadMonitor.

    Example:
        >>> soft = {"relative_margin/attention": 1e-3, "attention/selected_mass": 0.2, "status/attention": "certified"}
        >>> heads_in_words({f"head0/{key}": x for key, x in soft.items()})
        '1 head, its Att-SVM certified: soft (no token has half of the attention), under 1/100 of its SVM margin.'
    """
    heads = heads_of(last)
    if not heads:
        return ""
    groups, names = _groups(heads), short_names(list(heads))
    sentences = [_first_sentence(groups, len(heads))]
    for sinks, what in ((groups.first, "first"), (groups.last, "last")):
        if sinks:
            who = "It attends" if len(heads) == 1 else f"{len(sinks)} attend{'s' * (len(sinks) == 1)}"
            told = "" if len(heads) == 1 else f": {_listed([names[head] for head in sinks])}"
            sentences.append(f"{who} to the {what} token whatever the input (a sink){told}.")
    if groups.open:
        listed = _listed([f"{names[head]} ({status})" for head, status in groups.open.items()])
        sentences.append(f"No certified Att-SVM, so no relative margin: {listed}.")
    return " ".join(sentences)


def _first_sentence(groups: Groups, count: int) -> str:
    certified = count - len(groups.open)
    if count == 1:
        parts = [f"soft (no token has half of the attention){', under 1/100 of its SVM margin' * len(groups.tied)}"]
        parts = parts[: len(groups.soft)]
        near = ", at half of its SVM margin or more" * len(groups.near)
        parts += [f"it selects (a token has more than half of the attention){near}"] * len(groups.selecting)
        told = "its Att-SVM certified" if certified else "its Att-SVM not certified"
        return f"1 head, {told}{': ' if parts else ''}{'; '.join(parts)}."
    parts = []
    if groups.soft:
        tied = f", {len(groups.tied)} of them under 1/100 of the SVM's margin: no selection" if groups.tied else ""
        parts.append(f"{len(groups.soft)} soft (no token has half of the attention{tied})")
    if groups.selecting:
        near = f", {len(groups.near)} of them at half of the SVM's margin or more" if groups.near else ""
        parts.append(f"{len(groups.selecting)} selecting (a token has more than half of the attention{near})")
    told = "all Att-SVMs certified" if certified == count else f"{certified} with a certified Att-SVM"
    return f"{count} heads, {told}{': ' if parts else ''}{'; '.join(parts)}."


def _groups(heads: Mapping[str, Mapping[str, object]]) -> Groups:
    groups = Groups({}, [], [], [], [], [], [])
    for head, numbers in heads.items():
        status = numbers.get("status/attention")
        if status != "certified":
            groups.open[head] = str(status or "not measured")
        mass, relative = (_number(numbers.get(k)) for k in ("attention/selected_mass", "relative_margin/attention"))
        if mass is None:
            continue
        if mass <= SELECTS:
            groups.soft.append(head)
            groups.tied.extend([head] * (relative is not None and relative < TIED))
            continue
        groups.selecting.append(head)
        groups.near.extend([head] * (relative is not None and relative >= NEAR))
        first, end = (_number(numbers.get(f"attention/{place}")) or 0.0 for place in ("first", "last"))
        groups.first.extend([head] * (first >= ALWAYS))
        groups.last.extend([head] * (end >= ALWAYS))
    return groups


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _number(x: object) -> float | None:
    return float(x) if isinstance(x, int | float) else None
