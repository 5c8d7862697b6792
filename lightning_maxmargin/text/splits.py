"""Labels by name, and a validation split cut out of the training documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightning_maxmargin.errors import InputError


def check_labels(
    train: Sequence[str], val: Sequence[str] | None = None, test: Sequence[str] | None = None, cut: bool = False
) -> list[str]:
    """The names of the classes, sorted; as numbers where all are numbers.

    Args:
        train: label of each training document.
        val: of each validation document, where there are some.
        test: of each test document, where there are some.
        cut: whether a validation split will be cut out of ``train``, which takes two documents of every label.

    Raises:
        InputError: fewer than two labels, a label that training documents lack, or one with too few to be cut.

    Example:
        >>> check_labels(["10", "9", "10"]), check_labels(["neg", "pos"], test=["pos"])
        (['9', '10'], ['neg', 'pos'])
    """
    counts = Counter(train)
    if len(counts) < 2:
        only = "".join(f", {_short(name)}" for name in counts)
        raise InputError(f"data: {len(train)} training documents have {len(counts)} label{only}; expected two or more")
    for split, labels in (("validation", val), ("test", test)):
        unknown = next((i for i, name in enumerate(labels or ()) if name not in counts), None)
        if labels is not None and unknown is not None:
            raise InputError(
                f"data: {split} document {unknown + 1} has the label {_short(labels[unknown])}, which no training "
                f"document has; they have {_listed(_ordered(counts))}"
            )
    if cut:
        _check_cut(train, counts)
    return _ordered(counts)


def label_numbers(labels: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    """The place of each label among the names of a model.

    Raises:
        InputError: a label that the model does not know; ``where`` says of what.

    Example:
        >>> label_numbers(["pos", "neg"], ["neg", "pos"], "data.test")
        [1, 0]
    """
    known = {name: k for k, name in enumerate(names)}
    unknown = next((i for i, label in enumerate(labels) if label not in known), None)
    if unknown is not None:
        raise InputError(
            f"{where}: document {unknown + 1} has the label {labels[unknown]!r:.60}, which the model does not know; "
            f"it knows {', '.join(names[:10])}"
        )
    return [known[label] for label in labels]


def stratified(labels: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the documents to train on and to validate on, each label divided alike.

    Of every label ``round(share * count)`` documents are for validation: at least one, and at least one is left.

    Args:
        labels: n names.
        share: of validation, between 0 and 1.
        seed: of the choice.

    Returns:
        Both ascending, together 0 to n - 1.

    Raises:
        InputError: the share is not between 0 and 1, or a label has one document alone.

    Example:
        >>> train, val = stratified(["a", "b"] * 10, 0.2, seed=0)
        >>> len(train), [["a", "b"][i % 2] for i in val].count("a"), len(val)
        (16, 2, 4)
    """
    if not 0 < share < 1:
        raise InputError(f"data: a validation share of {share}; expected a number between 0 and 1")
    _check_cut(labels, Counter(labels))
    names, codes = np.unique(np.asarray(labels, dtype=object), return_inverse=True)
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for code in range(len(names)):
        rows = generator.permutation(np.flatnonzero(codes == code))
        chosen[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()


def _check_cut(labels: Sequence[str], counts: Counter[str]) -> None:
    lonely = next((name for name in _ordered(counts) if counts[name] < 2), None)
    if lonely is not None:
        raise InputError(
            f"data: the label {_short(lonely)} has one document alone (number {labels.index(lonely) + 1}), and a "
            "validation split takes a second; add one, drop the label, or give a validation split"
        )


def _ordered(names: Counter[str]) -> list[str]:
    """Numbers by size, if all names are numbers; else by their characters."""
    try:
        sizes = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    if not all(map(math.isfinite, sizes.values())):  # "nan" and "inf" are words
        return sorted(names)
    return sorted(names, key=lambda name: (sizes[name], name))


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_short, names[:most])) + more


def _short(name: str, most: int = 40) -> str:
    return repr(name if len(name) <= most else name[:most] + "...")
