"""``maxmargin evaluate``: a finished run's rationales beside those of the standing baselines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.atomic import write_output
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.baselines import fine_tuned, mean_pool, require
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.faithful import Method, agreement, faithfulness, marks_of
from lightning_maxmargin.text.finished import FinishedRun, check_options, read_run
from lightning_maxmargin.text.gradients import Gradients, gradient_rationales
from lightning_maxmargin.text.pooled import Kind, PoolingModel
from lightning_maxmargin.text.scores import read_scores
from lightning_maxmargin.text.significance import bootstrap_mean
from lightning_maxmargin.text.tfidf import Labelled, TfIdf

SELECTOR = "selector"


def evaluate(options: Any) -> int:
    """Measures a run's rationales and the baselines', and prints the tables.

    Args:
        options: as :func:`~lightning_maxmargin.run.parsers.evaluate_parser` reads them.

    Raises:
        InputError: there is no such run, or its documents or the scores given are wrong.
    """
    from lightning_maxmargin.text.evaluate_table import print_tables

    _check(options)
    bins = shares(options.bins)
    run = read_run(options.run_dir)
    split = run.split(run.test_documents(options.data))
    groups = None if options.group is None else read_groups(run.source(options.data), options.group, len(split))
    chosen = sampled(len(split), options.documents, options.seed)
    methods = [*_of_selector(run, split, options.scores, options.seed)]
    if options.baselines != "none":
        kinds: tuple[Gradients, ...] = get_args(Gradients) if options.gradients else ()
        methods += _baselines(run, split, chosen, kinds, options.baselines == "all", options.seed)
    table = {
        "run": str(run.folder), "data": run.source(options.data), "documents": len(split), "bins": list(bins),
        "faithfulness_documents": len(chosen), "units": split.units, "seed": options.seed,
        "rows": rows(methods, split, chosen, bins, groups, options.seed, options.share),
    }  # fmt: skip
    print_tables(table)
    if options.output is not None:
        write_output(Path(options.output), json.dumps(table, indent=2, ensure_ascii=False) + "\n")
        print(options.output)
    return 0


def _check(options: Any) -> None:
    """Raises InputError where it cannot be done."""
    if options.documents < 1:
        raise InputError(f"--documents: {options.documents}; expected a positive number")
    if options.share is not None and not 0 < options.share <= 1:
        raise InputError(f"--share: {options.share}; expected a share of the words, above 0 and at most 1")
    check_options(options.seed, options.output)
    if options.baselines != "none":
        require("sklearn", *(["captum"] if options.gradients else []))


def shares(text: str) -> tuple[float, ...]:
    """Percentages as shares.

    Raises:
        InputError: something else, or none.

    Example:
        >>> shares("1,50")
        (0.01, 0.5)
    """
    try:
        found = tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise InputError(f"--bins: {text!r}; expected percentages of the words, as 1,5,10,20,50")
    return found


def sampled(n: int, most: int, seed: int) -> list[int]:
    """At most so many of n documents, ascending.

    Example:
        >>> sampled(3, 5, seed=0)
        [0, 1, 2]
    """
    return sorted(np.random.default_rng(seed).choice(n, size=min(n, most), replace=False).tolist())


def read_groups(source: str, column: str, n: int) -> list[str]:
    """The value of this column for each document: documents of one group belong together.

    Raises:
        InputError: the source is no file, or has no such column for each document.
    """
    from lightning_maxmargin.text.cache import cache_folder
    from lightning_maxmargin.text.tables import read_table

    if not Path(source).is_file():
        raise InputError(f"--group: {source} is no file; a group is read from a column of a file")
    table = read_table(Path(source), [column], cache_folder() / "datasets")
    values = table.columns.get(column)
    if values is None or len(values) != n:
        raise InputError(f"--group: {source} has no column {column!r}; it has {', '.join(map(str, table.names[:20]))}")
    return [f"document {i}" if value is None else str(value) for i, value in enumerate(values)]


def both_right(right: Sequence[bool], groups: Sequence[str]) -> list[bool]:
    """Of each group of two documents or more, whether all are right.

    Example:
        >>> both_right([True, True, False, True, True], ["a", "a", "b", "b", "c"])
        [True, False]
    """
    found: dict[str, list[bool]] = {}
    for name, value in zip(groups, right, strict=True):
        found.setdefault(name, []).append(bool(value))
    return [all(values) for values in found.values() if len(values) > 1]


# --- methods ----------------------------------------------------------------------------------------------------


def _of_selector(run: FinishedRun, split: Split, given: str | None, seed: int) -> Iterator[Method]:
    """The run's own rationales, those of a file, and random ones, all of the same model."""
    outside = None if given is None else read_scores(given, split)
    selector = PoolingModel(run.model, split)
    for kind in get_args(Kind):
        yield Method(f"{SELECTOR} {kind}", SELECTOR, selector, _rationales(selector, kind))
    if given is not None and outside is not None:
        yield Method(Path(given).name, SELECTOR, selector, outside)
    generator = torch.Generator().manual_seed(seed)
    counts = [len(split.unit_spans(i)) for i in range(len(split))]
    random = {i: torch.rand(n, generator=generator, dtype=torch.float64) for i, n in enumerate(counts)}
    yield Method("random", SELECTOR, selector, random)


def _rationales(model: PoolingModel, kind: Kind) -> dict[int, Tensor]:
    return {i: document.rationale(kind) for i, document in enumerate(model.documents)}


def _baselines(
    run: FinishedRun, split: Split, chosen: list[int], kinds: tuple[Gradients, ...], tuned: bool, seed: int
) -> Iterator[Method]:
    data = run.training_data()
    train, val = (data.labelled(name) for name in ("train", "val"))
    pooling = mean_pool(data, run.model.config.token_scale)
    yield from _of_pooling("mean-pool", PoolingModel(pooling, split), chosen, kinds)
    words = TfIdf(_labelled(train), _labelled(val), split)
    yield Method("TF-IDF", "TF-IDF", words, {i: words.rationale(i) for i in range(len(split))})
    if tuned:
        model = PoolingModel(fine_tuned(pooling, train, seed), split)
        yield from _of_pooling("fine-tuned", model, chosen, kinds)


def _labelled(split: Split) -> Labelled:
    assert split.labels is not None
    return Labelled(split.documents.texts, split.labels.tolist())


def _of_pooling(name: str, model: PoolingModel, chosen: list[int], kinds: tuple[Gradients, ...]) -> Iterator[Method]:
    yield Method(name, name, model, _rationales(model, "s y v'x"))
    for kind in kinds:
        # A gradient costs as much as encoding twice, integrated ones sixteen times that.
        texts = range(len(model.split)) if kind == "gradient x input" else chosen
        scores = gradient_rationales(model.model, model.split, texts, kind)
        yield Method(kind if name == "mean-pool" else f"{kind}, {name}", name, model, scores)


# --- rows -------------------------------------------------------------------------------------------------------


def rows(
    methods: Sequence[Method], split: Split, chosen: Sequence[int], bins: Sequence[float], groups: list[str] | None,
    seed: int, share: float | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per method: means over documents, and bootstrap intervals as [low, high].

    Args:
        methods: of any models.
        split: the documents, labelled.
        chosen: those that faithfulness is measured on.
        bins: shares of the words.
        groups: of each document, for ``both_right``.
        seed: of the bootstrap.
        share: of the words in the hard rationale; as many as are marked where None.
    """
    marks, found = marks_of(split), []
    assert split.labels is not None
    for method, faithful in zip(methods, faithfulness(methods, chosen, bins), strict=True):
        right = np.asarray(method.explains.predicted) == split.labels.numpy()
        agreed = agreement(method.scores, marks, share)
        row: dict[str, Any] = {"method": method.name, "model": method.model}
        row |= _interval("accuracy", right, seed)
        if groups is not None:
            row |= _interval("both_right", both_right(right.tolist(), groups), seed)
        row |= _interval("auprc", agreed.auprc, seed) | {"marked_documents": len(agreed.auprc)}
        row |= {name: _mean(getattr(agreed, name)) for name in ("r_precision", "token_f1", "iou_f1")}
        found.append(row | {name: _mean(values) for name, values in faithful.items()})
    return found


def _interval(name: str, values: Any, seed: int) -> dict[str, Any]:
    mean, low, high, count = bootstrap_mean(np.asarray(values, dtype=np.float64), seed=seed)
    return {name: mean, f"{name}/interval": [low, high]} if count else {name: None, f"{name}/interval": None}


def _mean(values: Any) -> float | None:
    kept = np.atleast_1d(np.asarray(values, dtype=np.float64))
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if len(kept) else None
