"""What a run leaves of its attention heads: which tokens each one looked at, at every evaluation (``heads.json``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from lightning_maxmargin.callbacks.shown_heads import token_rows
from lightning_maxmargin.errors import InputError

#: Heaviest tokens of a sample that are kept.
HEAVIEST = 3
#: Token weights of a file, over heads, evaluations and samples: about 13 bytes each, so 1 MB.
MOST_WEIGHTS = 80_000
#: What the report colours its grid by.
COLOUR = "relative_margin/attention"
#: Tokens of a sample that are named; what lies behind is shown by its number.
MOST_TOKENS = 512


def heads_file_of(
    rows: Sequence[tuple[int, Mapping[str, Tensor]]], history: Sequence[Mapping[str, Any]], tokens: list[list[str]]
) -> dict[str, Any]:
    """The content of ``heads.json``.

    Args:
        rows: (step, {head: (maps, T) attention}) of every evaluation, as :attr:`HeadMonitor.rows`.
        history: the numbers of every evaluation with their ``step``, as :attr:`HeadMonitor.history`.
        tokens: the names of each sample's tokens, as far as they are known.

    Returns:
        ``heads`` (names), ``steps``, ``tokens``, ``measured``, the step of the evaluation that margins shown at a step
        are of (the last before it, or the first), ``numbers`` ``[step][head]``, the share of the SVM's margin or None,
        and ``seen`` ``[step][head][sample]``, its heaviest tokens as ``[position, weight in per cent]``, heaviest
        first. Of more evaluations than the file has room for, some are kept, the first and the last among them.

    Example:
        >>> import torch
        >>> rows = [(5, {"head0": torch.tensor([[0.25, 0.75]])})]
        >>> found = heads_file_of(rows, [{"step": 5, "head0/relative_margin/attention": 0.5}], [["a", "b"]])
        >>> found["numbers"], found["seen"]
        ([[0.5]], [[[[[1, 75], [0, 25]]]]])
    """
    names = list(dict.fromkeys(name for _, attention in rows for name in attention))
    # An evaluation of fewer samples than are looked at has fewer rows.
    samples = min((len(x) for _, attention in rows for x in attention.values()), default=0)
    tokens = tokens[:samples]
    kept = _spread(len(rows), max(2, MOST_WEIGHTS // max(1, HEAVIEST * len(names) * max(1, samples))))
    chosen = [rows[i] for i in kept]
    evaluated = [_evaluation(history, step) for step, _ in chosen]
    return {
        "heads": names,
        "steps": [step for step, _ in chosen],
        "tokens": [sample[:MOST_TOKENS] for sample in tokens],
        "measured": [None if row is None else int(row["step"]) for row in evaluated],
        "numbers": [[_number(row or {}, name) for name in names] for row in evaluated],
        "seen": [[_heaviest(attention.get(name), samples) for name in names] for _, attention in chosen],
    }


def _evaluation(history: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any] | None:
    before = [row for row in history if row["step"] <= step]
    return before[-1] if before else next(iter(history), None)


def _number(row: Mapping[str, Any], head: str) -> float | None:
    x = row.get(f"{head}/{COLOUR}")
    return round(float(x), 4) if isinstance(x, int | float) else None


def _heaviest(attention: Tensor | None, samples: int) -> list[list[list[int]]]:
    """Of every sample the heaviest tokens, without those that have nothing; none of a head that could not be read."""
    if attention is None:
        return [[] for _ in range(samples)]
    attention = attention[:samples]
    weights, places = attention.topk(min(HEAVIEST, attention.shape[1]), dim=1)
    return [
        [[t, round(100 * w)] for t, w in zip(ts, ws, strict=True) if w >= 0.005]
        for ts, ws in zip(places.tolist(), weights.tolist(), strict=True)
    ]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of these places, evenly, with both ends.

    Example:
        >>> _spread(5, 3), _spread(2, 3)
        ([0, 2, 4], [0, 1])
    """
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def token_names(batches: Sequence[Any], samples: int, tokenizer: Any = None) -> list[list[str]]:
    """What the tokens of the first samples are called: by the tokenizer, else by their numbers; empty where unknown.

    Args:
        batches: what the module is given, as of :func:`~lightning_maxmargin.callbacks.shown_heads.token_rows`.
        samples: how many.
        tokenizer: with ``convert_ids_to_tokens``, as Hugging Face's; None where there is none.

    Example:
        >>> import torch
        >>> token_names([{"input_ids": torch.tensor([[7, 8], [9, 7]])}], 1)
        [['7', '8']]
    """
    try:
        read = list(islice(token_rows(batches), samples))
    except InputError:
        return []
    found = []
    for ids, kept in read:
        length = _length(ids, kept, getattr(tokenizer, "pad_token_id", None))
        named = ids[:length] if tokenizer is None else tokenizer.convert_ids_to_tokens(ids[:length])
        found.append([str(name) for name in named])
    return found


def _length(ids: list[int], kept: list[bool], padding: int | None) -> int:
    """Tokens up to the last that is no padding."""
    unmasked = all(kept)
    real = [i for i, k in enumerate(kept) if k and not (unmasked and ids[i] == padding)]
    return real[-1] + 1 if real else 0


def tokenizer_of(*owners: Any) -> Any:
    """The first ``tokenizer`` that one of these (module, data module) has; None where none has one.

    Example:
        >>> tokenizer_of(None, object()) is None
        True
    """
    for owner in owners:
        for holder in (owner, getattr(owner, "encoder", None), getattr(owner, "processor", None)):
            found = getattr(holder, "tokenizer", None)
            if hasattr(found, "convert_ids_to_tokens"):
                return found
    return None
