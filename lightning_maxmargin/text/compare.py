"""``maxmargin compare``: two runs on the same documents, and whether the difference is more than chance."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_maxmargin.atomic import refuse_existing, write_output
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.choice import print_choice, select
from lightning_maxmargin.text.faithful import agreement, marks_of
from lightning_maxmargin.text.finished import FinishedRun, check_options, read_run
from lightning_maxmargin.text.pooled import Pooled, PoolingModel
from lightning_maxmargin.text.records import Documents
from lightning_maxmargin.text.significance import Interval, bootstrap_mean, mcnemar, paired_bootstrap

LEVEL = 0.05


@dataclass(frozen=True)
class Measured:
    """What one run says of the documents.

    Attributes:
        right: (n,) bool.
        auprc: by number of the document, of those with marked words.
        pooled: of each document.
        words: of each document, as the run reads it.
        marks: numbers of the words that people marked, of the documents where they did.
    """

    right: Any
    auprc: Mapping[int, float]
    pooled: Sequence[Pooled]
    words: Sequence[Sequence[str]]
    marks: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same documents: the numbers that :func:`compared` gives, and what each run says of each."""

    found: Mapping[str, Any]
    runs: Sequence[FinishedRun]
    documents: Documents
    measured: Sequence[Measured]


#: Writes the page of a comparison.
PageWriter = Callable[[Path, Comparison], None]


def compare(options: Any, write_page: PageWriter | None = None) -> int:
    """Measures two runs on the same documents, and says which is better or that the data do not tell.

    Args:
        options: as :func:`~lightning_maxmargin.run.parsers.compare_parser` reads them.
        write_page: of the page; without it there is none.

    Raises:
        InputError: a directory is no finished run, the labels differ, there are no test documents, or an output file
            is there already.
    """
    check_options(options.seed, options.output)
    if options.select is not None:
        chosen = select([options.run_a, options.run_b, *options.more], options.select)
        print_choice(chosen)
        return _written(chosen, options.output)
    if options.more:
        raise InputError("compare: two runs can be compared; to choose among more give --select accuracy+lead")
    page = page_path(options.run_a, options.run_b, options.output)
    runs = [read_run(options.run_a), read_run(options.run_b)]
    if set(runs[0].names) != set(runs[1].names):
        labels = " and ".join(f"{run.folder} {', '.join(run.names[:5])}" for run in runs)
        raise InputError(f"compare: the labels differ: {labels}; two runs of the same labels can be compared")
    documents = runs[0].test_documents(options.data)
    measured = [measure(run, documents) for run in runs]
    found = numbers(runs, measured, options.seed) | {"data": runs[0].source(options.data)}
    _print(found)
    if write_page is not None:
        _write_page(write_page, page, Comparison(found, runs, documents, measured), options.output is not None)
    return _written(found, None if _is_page(options.output) else options.output)


def _is_page(output: str | None) -> bool:
    return output is not None and Path(output).suffix.lower() in (".html", ".htm")


def page_path(run_a: str, run_b: str, output: str | None) -> Path:
    """Where the page goes: to ``--output``, or beside the numbers there, else into the current directory.

    Raises:
        InputError: the page of an ``--output`` is there already.

    Example:
        >>> page_path("runs/mine", "runs/other", None).name, page_path("a", "b", "out.json").name
        ('compare-mine-other.html', 'out.html')
    """
    if output is not None:
        page = Path(output) if _is_page(output) else Path(output).with_suffix(".html")
        refuse_existing(page)
        return page
    names = [re.sub(r"[^\w.-]+", "-", Path(run).resolve().name)[:60] or "run" for run in (run_a, run_b)]
    stem = f"compare-{names[0]}-{names[1]}"
    taken = (Path(f"{stem}{'' if k == 1 else f'-{k}'}.html") for k in count(1))
    return next(path for path in taken if not path.exists() and not path.is_symlink())


def _write_page(write_page: PageWriter, page: Path, comparison: Comparison, is_asked: bool) -> None:
    """Writes the page; one that nobody asked for by name is left out where there is no place for it."""
    here = page.resolve().parent
    inside = [run.folder for run in comparison.runs if run.folder.resolve() in (here, *here.parents)]
    if inside and not is_asked:
        print(f"no page: the current directory is of the run {inside[0]}, which stays as it is; name one with --output")
    elif not is_asked and not os.access(here, os.W_OK):
        print(f"no page: {here} cannot be written; name one with --output")
    else:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, comparison)
        print(page)


def _written(found: Mapping[str, Any], output: str | None) -> int:
    if output is not None:
        write_output(Path(output), json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        print(output)
    return 0


def compared(runs: Sequence[FinishedRun], documents: Documents, seed: int = 0) -> dict[str, Any]:
    """Accuracy, AUPRC of the attention where words are marked, and their differences, A less B.

    Args:
        runs: A and B.
        documents: with labels.
        seed: of the bootstrap.
    """
    return numbers(runs, [measure(run, documents) for run in runs], seed)


def numbers(runs: Sequence[FinishedRun], measured: Sequence[Measured], seed: int = 0) -> dict[str, Any]:
    """The same, of what was measured already."""
    right, auprc = [m.right for m in measured], [m.auprc for m in measured]
    test = mcnemar(*right)
    found: dict[str, Any] = {"runs": [str(run.folder) for run in runs], "documents": len(right[0])}
    found["accuracy"] = _both(right, seed) | {
        "only_a_right": test.only_first, "only_b_right": test.only_second, "mcnemar_p": test.p,
    }  # fmt: skip
    common = sorted(set(auprc[0]) & set(auprc[1]))
    if common:
        values = [[part[i] for i in common] for part in auprc]
        found["auprc"] = _both(values, seed) | {"documents": len(common)}
    return found | {"sentences": sentences(found)}


def measure(run: FinishedRun, documents: Documents) -> Measured:
    """What a run says of labelled documents."""
    split = run.split(documents)
    model = PoolingModel(run.model, split)
    assert split.labels is not None
    right = np.asarray(model.predicted) == split.labels.numpy()
    marks = marks_of(split)
    scores = {i: model.documents[i].rationale("s") for i in marks}
    auprc = dict(zip(scores, agreement(scores, marks).auprc.tolist(), strict=True))
    words = [[text[a:b] for a, b in split.unit_spans(i)] for i, text in enumerate(documents.texts)]
    numbered = {i: [k for k, is_marked in enumerate(mark) if is_marked] for i, mark in marks.items()}
    return Measured(right, auprc, model.documents, words, numbered)


def _both(values: Sequence[Any], seed: int) -> dict[str, Any]:
    a, b = (bootstrap_mean(np.asarray(part, dtype=np.float64), seed=seed) for part in values)
    difference = paired_bootstrap(values[0], values[1], seed=seed)
    return {"a": _listed(a), "b": _listed(b), "difference": _listed(difference)}


def _listed(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in plain words.

    Args:
        found: ``runs``, ``accuracy`` and, where words are marked, ``auprc``, as of :func:`compared`.
    """
    a, b = found["runs"]
    accuracy = found["accuracy"]
    gain, p = accuracy["difference"]["mean"], accuracy["mcnemar_p"]
    chance = f"McNemar's p = {p:.2g}, on {accuracy['only_a_right']} and {accuracy['only_b_right']} documents that one "
    chance += "alone got right"
    if p < LEVEL:
        lines = [f"{a if gain > 0 else b} classifies better, by {abs(gain):.3f} of accuracy ({chance})."]
    else:
        lines = [f"The data do not tell which classifies better ({chance})."]
    if "auprc" in found:
        gap = found["auprc"]["difference"]
        span = f"AUPRC differs by {gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        if gap["low"] <= 0 <= gap["high"]:
            lines.append(f"The data do not tell which finds more of the words that people marked ({span}).")
        else:
            lines.append(f"{a if gap['mean'] > 0 else b} finds more of the words that people marked ({span}).")
    return lines


def _print(found: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(title=escape(f"{found['documents']} documents of {found['data']}"), title_justify="left")
    for name in ("", "accuracy", *(["AUPRC"] if "auprc" in found else [])):
        table.add_column(name)
    parts = [found[name] for name in ("accuracy", "auprc") if name in found]
    for label, key in (("A " + found["runs"][0], "a"), ("B " + found["runs"][1], "b"), ("A - B", "difference")):
        sign = "+" if key == "difference" else ""
        table.add_row(
            escape(label),
            *("{mean:{s}.3f} [{low:{s}.3f}, {high:{s}.3f}]".format(**part[key], s=sign) for part in parts),
        )
    console.print(table)
    console.print("Brackets: 95 % bootstrap intervals, of A - B by pairs.")
    for line in found["sentences"]:
        console.print(line, markup=False)
