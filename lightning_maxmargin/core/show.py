"""What a notebook shows of sequences: how many, of what, where they lie, and the first of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_maxmargin.html_table import block, faint, number, rest_of, table

if TYPE_CHECKING:
    from lightning_maxmargin.core.sequences import Sequences

#: Sequences, and coordinates of a token, that are shown.
FIRST, COORDINATES = 3, 4
#: Labels up to which each is counted.
MOST_LABELS = 10


def label_counts(labels: Tensor) -> str:
    """How often each label is there.

    Example:
        >>> label_counts(torch.tensor([1.0, -1.0, 1.0]))
        '1 of -1, 2 of 1'
    """
    found, counts = labels.unique(return_counts=True)
    listed = [f"{n:,} of {x:g}" for x, n in zip(found.tolist(), counts.tolist(), strict=True)]
    more = f", … {len(listed):,} labels in all" if len(listed) > MOST_LABELS else ""
    return ", ".join(listed[:MOST_LABELS]) + more


def memory(data: Sequences) -> str:
    """What keys and values take, once where they are the same."""
    parts = [data.keys] if data.values is data.keys else [data.keys, data.values]
    size = float(sum(x.numel() * x.element_size() for x in parts))
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _rows(data: Sequences) -> list[tuple[object, ...]]:
    kind = str(data.keys.dtype).removeprefix("torch.")
    where = "mapped from a file" if data.mapped else f"on {data.keys.device}"
    found: list[tuple[object, ...]] = [
        ("keys", str(tuple(data.keys.shape)), faint("n sequences, T tokens, d dimensions")),
        ("memory", f"{memory(data)}, {kind} {where}", faint("keys and values")),
    ]
    if data.labels.ndim == 1 and len(data.labels):
        found.append(("labels", label_counts(data.labels), ""))
    if data.values is not data.keys:
        found.append(("values", str(tuple(data.values.shape)), faint("what the head reads")))
    if data.queries is not None:
        found.append(("queries", str(tuple(data.queries.shape)), faint("one of each sequence")))
    if data.mask is not None and data.mask.numel():
        lengths = data.mask.sum(1)
        share = 1 - float(data.mask.double().mean())
        spread = f"{int(lengths.min())} to {int(lengths.max())} tokens, median {int(lengths.median())}"
        found.append(("padding", f"{share:.1%}", faint(spread)))
    if data.planted is not None:
        found.append(("planted", f"{len(data.planted):,}", faint("the token that carries the label is known")))
    if data.instance is not None and len(data.instance):
        found.append(("instances", f"{len(data.instance.unique()):,}", faint("separate problems")))
    return found


def _first(data: Sequences) -> list[tuple[object, ...]]:
    rows = []
    for i in range(min(FIRST, len(data))):
        token = data.keys[i, 0].tolist() if data.keys.shape[1] else []
        more = ", …" if len(token) > COORDINATES else ""
        count = data.keys.shape[1] if data.mask is None else int(data.mask[i].sum())
        coordinates = f"({', '.join(number(x) for x in token[:COORDINATES])}{more})"
        planted = [] if data.planted is None else [int(data.planted[i])]
        rows.append((int(data.index[i]), f"{data.labels[i].item():g}", count, coordinates, *planted))
    return rows


@torch.no_grad()
def sequences_html(data: Sequences) -> str:
    """The numbers of the set, and the first sequences; nothing is read of a mapped file beyond those."""
    header = ["index", "label", "tokens", "first token", *(["planted"] if data.planted is not None else [])]
    first = table(_first(data), header) if len(data) and data.labels.ndim == 1 else ""
    return block(f"Sequences: {len(data):,}", table(_rows(data)), first, rest_of(len(data), FIRST))
