"""What a run directory holds, read back and checked: config, summary, metrics, paths and tokens."""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import json_text
from lightning_maxmargin.figures.head_file import DAMAGED, read_heads
from lightning_maxmargin.figures.table import read_table

Array = NDArray[Any]
#: What the report reads of corpus.json and test.json.
CORPUS = {
    "accuracy": dict,
    "mean_pool": dict | None,
    "classes": list,
    "confusion": list,
    "words": list,
    "findings": list,
}
TEST = {"labels": list, "documents": int, "confusion": list, "thirds": dict}
#: Where the report looks for the numbers of ``maxmargin evaluate``.
EVALUATED = "evaluate.json"
RERUN_HINT = "run `maxmargin fit` into a new --run_dir"


@dataclass(frozen=True)
class Example:
    """One text example of ``tokens.jsonl``; ``prediction`` is the logit, or the class as an int or by name.

    Of documents by :class:`~lightning_maxmargin.modules.text.TextSelection` also what each word says for the predicted
    label, its probability, lead and entropy of the attention, ``size`` (|f|, the largest logit less the second), and in
    ``rationale`` the numbers of the words that people marked.
    """

    index: int
    label: float | str
    prediction: float | int | str | None
    tokens: list[str]
    attention: list[float]
    selected: int
    planted: int | None
    evidence: list[float] | None = None
    probability: float | None = None
    lead: float | None = None
    entropy: float | None = None
    size: float | None = None
    rationale: list[int] | None = None

    @property
    def right(self) -> bool | None:
        """Whether the prediction agrees with the label; None where there is no finite prediction."""
        if isinstance(self.prediction, str) or isinstance(self.label, str):
            return self.prediction == self.label
        if self.prediction is None or not math.isfinite(self.prediction):
            return None
        if self.by_class:
            return self.prediction == self.label
        return (self.prediction > 0) == (self.label > 0)

    @property
    def by_class(self) -> bool:
        """Whether label and prediction are class indices; a logit is written as a float."""
        if isinstance(self.label, str):
            return True
        return isinstance(self.prediction, int) and self.label >= 0


@dataclass(frozen=True)
class Metrics:
    """The columns of ``metrics.csv``, one entry per step (the last logged), NaN where nothing was logged.

    Example:
        >>> m = Metrics(np.array([0, 5]), {"norm/head": np.array([np.nan, 2.0])})
        >>> [x.tolist() for x in m.series("norm/head")], m.has("norm/attention")
        ([[5.0], [2.0]], False)
    """

    step: Array
    columns: dict[str, Array] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        """Whether the column has any finite number."""
        return key in self.columns and bool(np.isfinite(self.columns[key]).any())

    def series(self, key: str, against: str | None = None) -> tuple[Array, Array]:
        """(x, y) where both are finite; x is the step, or the column ``against``."""
        nothing = np.full(len(self.step), np.nan)
        y = self.columns.get(key, nothing)
        x = self.step.astype(float) if against is None else self.columns.get(against, nothing)
        keep = np.isfinite(x) & np.isfinite(y)
        return x[keep], y[keep]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run directory.

    Attributes:
        run_dir: where they lie.
        config: the text of ``config.yaml``.
        summary: ``summary.json``.
        metrics: ``metrics.csv``; no steps where the run logged nothing.
        paths: arrays of ``paths.npz`` (2-d data alone), else None.
        examples: ``tokens.jsonl`` (text alone), else empty.
        corpus: ``corpus.json`` of a run of TextSelection, else None.
        test: its ``test.json``, else None.
        heads: ``heads.json``, where attention heads were watched, else None.
        evaluated: ``evaluate.json``, where ``maxmargin evaluate RUN --output RUN/evaluate.json`` wrote it, else None.
    """

    run_dir: Path
    config: str
    summary: dict[str, Any]
    metrics: Metrics
    paths: dict[str, Array] | None
    examples: list[Example]
    corpus: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    evaluated: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None

    @classmethod
    def load(cls, run_dir: str | Path) -> RunFiles:
        """Reads the directory.

        Args:
            run_dir: of a run of ``maxmargin fit``.

        Raises:
            InputError: it is no run directory, or one of its files is damaged.
        """
        run_dir = Path(run_dir)
        if not run_dir.is_dir():
            raise InputError(f"report: {run_dir} is no directory; give the --run_dir of a finished run")
        for name in ("config.yaml", "summary.json"):
            if not (run_dir / name).is_file():
                raise InputError(f"report: {run_dir} has no {name}, so it is no finished run; {RERUN_HINT}")
        return cls(
            run_dir=run_dir,
            config=_read_config(run_dir / "config.yaml"),
            summary=_read_summary(run_dir / "summary.json"),
            metrics=read_metrics(run_dir / "metrics.csv"),
            paths=_read_paths(run_dir / "paths.npz"),
            examples=_read_examples(run_dir / "tokens.jsonl"),
            corpus=_read_measured(run_dir / "corpus.json", CORPUS),
            test=_read_measured(run_dir / "test.json", TEST),
            evaluated=_read_measured(run_dir / EVALUATED, {"rows": list}),
            heads=_read_heads(run_dir / "heads.json"),
        )

    def number(self, key: str) -> float | None:
        """A finite number of the summary, else None.

        Args:
            key: of ``summary.json``.
        """
        x = self.summary.get(key)
        return float(x) if isinstance(x, int | float) and math.isfinite(x) else None

    def text(self, key: str) -> str:
        """A string of the summary, else the empty string.

        Args:
            key: of ``summary.json``.
        """
        x = self.summary.get(key)
        return x if isinstance(x, str) else ""


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"report: {path} is damaged: {' '.join(what.split())}; {RERUN_HINT}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _read_config(path: Path) -> str:
    text = _read_text(path)
    try:
        # Composed, not constructed: a tag in a config must not build an object here.
        yaml.compose(text)
    except yaml.YAMLError as error:
        raise _damaged(path, str(error)) from error
    return text


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json_text.load(_read_text(path))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(summary, dict):
        raise _damaged(path, "not an object of named numbers")
    return summary


def _read_measured(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json_text.load(_read_text(path))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    wrong = [k for k, kind in wanted.items() if not isinstance(found, dict) or not isinstance(found.get(k), kind)]
    if wrong:
        raise _damaged(path, f"`{wrong[0]}` is missing or not what it should be")
    return found


def _read_heads(path: Path) -> dict[str, Any] | None:
    try:
        return read_heads(path)
    except (OSError, *DAMAGED) as error:
        raise _damaged(path, str(error)) from error


def read_metrics(path: Path) -> Metrics:
    """The columns of a ``metrics.csv``; none where there is no such file.

    Raises:
        InputError: it is damaged.
    """
    try:
        table = read_table(path)
    except InputError as error:
        raise InputError(f"report: {error}; {RERUN_HINT}") from error
    if table.is_torn:
        warnings.warn(f"{path} ends in half a row, which is left out", stacklevel=2)
    by_step: dict[int, dict[str, float]] = {}
    for row in table.rows:
        cells = {name: float(cell) for name, cell in row.items() if cell}
        if "step" in cells:
            by_step.setdefault(int(cells.pop("step")), {}).update(cells)
    steps, names = sorted(by_step), [name for name in table.names if name != "step"]
    columns = {name: np.array([by_step[step].get(name, np.nan) for step in steps]) for name in names}
    return Metrics(np.array(steps, dtype=int), columns)


def _read_paths(path: Path) -> dict[str, Array] | None:
    if not path.is_file():
        return None
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    wanted = {"step": 1, "attention": 3, "keys": 3, "labels": 1, "selected": 1}
    for name, ndim in wanted.items():
        if name not in arrays or arrays[name].ndim != ndim:
            raise _damaged(path, f"`{name}` is missing or does not have {ndim} dimensions")
    order = np.argsort(arrays["step"], kind="stable")
    for name in ("step", "attention", "head"):
        if name in arrays and len(arrays[name]) == len(order):
            arrays[name] = arrays[name][order]
    m, (n, T) = len(arrays["step"]), arrays["keys"].shape[:2]
    arrays["mask"] = arrays.get("mask", np.ones((n, T), dtype=bool)).astype(bool)
    q = arrays["attention"].shape[1]
    shapes = {"attention": (m, q, 2), "head": (m, 2), "keys": (n, T, 2), "values": (n, T, 2), "labels": (n,)}
    shapes |= {"selected": (n,), "mask": (n, T), "svm/head": (2,)}
    shapes |= {f"svm/{k}": (q, 2) for k in ("strict", "relaxed", "rate_coupled")}
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise _damaged(path, f"`{name}` has shape {arrays[name].shape}, not {shape}")
    if ((arrays["selected"] < 0) | (arrays["selected"] >= T)).any():
        raise _damaged(path, f"`selected` names a token outside 0..{T - 1}")
    return arrays


def _read_examples(path: Path) -> list[Example]:
    if not path.is_file():
        return []
    # Split at newlines alone: str.splitlines would also cut at U+2028 inside a token.
    lines = [(i, t) for i, t in enumerate(_read_text(path).split("\n"), start=1) if t.strip()]
    return [_read_example(path, line, text) for line, text in lines]


def _read_example(path: Path, line: int, text: str) -> Example:
    try:
        given = json_text.load(text)
        # What came later may be absent, as from an older run.
        example = Example(**{f.name: given[f.name] for f in fields(Example) if f.default is MISSING or f.name in given})
        if not isinstance(example.tokens, list):
            raise TypeError("`tokens` is no list")
        tokens = [str(t) for t in example.tokens]
        attention = [float(a) if a is not None else 0.0 for a in example.attention]
        selected, label = (
            int(example.selected),
            example.label if isinstance(example.label, str) else float(example.label),
        )
    except KeyError as error:
        raise _damaged(path, f"line {line} has no {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, f"line {line}: {error}") from error
    _check_evidence(path, line, example.evidence, len(tokens))
    if not isinstance(example.index, int):
        raise _damaged(path, f"line {line}: `index` is no whole number")
    for name in ("probability", "lead", "entropy", "size"):
        if not isinstance(getattr(example, name), int | float | None):
            raise _damaged(path, f"line {line}: `{name}` is no number")
    _check_rationale(path, line, example.rationale, len(tokens))
    planted = example.planted if isinstance(example.planted, int) and example.planted >= 0 else None
    kinds = str | None if isinstance(label, str) else int | float | None
    if not isinstance(example.prediction, kinds):
        raise _damaged(path, f"line {line}: `prediction` is no number")
    if len(attention) != len(tokens) or not 0 <= selected < max(len(tokens), 1):
        raise _damaged(path, f"line {line}: {len(tokens)} tokens, {len(attention)} weights, selected {selected}")
    return replace(example, tokens=tokens, attention=attention, selected=selected, label=label, planted=planted)


def _check_evidence(path: Path, line: int, evidence: Any, tokens: int) -> None:
    if evidence is None:
        return
    if not isinstance(evidence, list) or not all(isinstance(x, int | float) for x in evidence):
        raise _damaged(path, f"line {line}: `evidence` is no list of numbers")
    if len(evidence) != tokens:
        raise _damaged(path, f"line {line}: {tokens} tokens, evidence of {len(evidence)}")


def _check_rationale(path: Path, line: int, rationale: Any, tokens: int) -> None:
    if rationale is None:
        return
    if not isinstance(rationale, list) or not all(isinstance(i, int) and 0 <= i < tokens for i in rationale):
        raise _damaged(path, f"line {line}: `rationale` is no list of numbers of its {tokens} tokens")
