"""A sweep file of W&B's with method grid, read to be run without its server: what cannot be run is refused here."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import find_key
from lightning_maxmargin.run.config_text import check_config

#: W&B's keys of a sweep, and of one of its parameters.
KEYS = ("name", "description", "project", "entity", "program", "method", "metric", "parameters", "command", "run_cap")
PARAMETER_KEYS = ("value", "values", "distribution")
GOALS = ("minimize", "maximize")
#: W&B's own command, where a file says none.
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
#: What stands for the words of the parameters.
ARGS = ("${args}", "${args_no_hyphens}", "${args_no_boolean_flags}")
MAXMARGIN = ["python", "-m", "lightning_maxmargin"]
#: What a run is told unless the file says otherwise, and what it is told by the sweep alone.
QUIET = ("--report=false", "--trainer.enable_progress_bar=false")
OF_THE_SWEEP = ("run_dir", "wandb")
#: Runs that a grid may have: a slip of the pen makes more, and W&B's run_cap says how many of them are wanted.
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Sweep:
    """What is run, and which run of it is the best.

    Attributes:
        name: of the sweep, its folder and its group in W&B.
        values: of each parameter, by the name that the command line has for it.
        command: W&B's, with its macros.
        program: of the command; empty where it has none.
        metric: key of ``summary.json``.
        maximize: whether the best run has the most of it.
        whose: words that say whose run it is in W&B.
        run_cap: how many runs of the grid are made; None for all.
    """

    name: str
    values: dict[str, list[Any]]
    command: list[str]
    program: str
    metric: str
    maximize: bool
    whose: tuple[str, ...]
    run_cap: int | None

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the parameters, in the order of the file."""
        every = itertools.product(*self.values.values())
        return [dict(zip(self.values, chosen, strict=True)) for chosen in itertools.islice(every, self.run_cap)]

    def each_value_once(self) -> list[dict[str, Any]]:
        """Combinations that have every value of every parameter, so that each word is checked without the product."""
        first = {name: values[0] for name, values in self.values.items()}
        others = [{**first, name: value} for name, values in self.values.items() for value in values[1:]]
        return [first, *others]

    def words(self, chosen: dict[str, Any], run: Path, wandb: str) -> list[str]:
        """The command line of one run; ``python`` is the one that runs the sweep.

        Args:
            chosen: a value of each parameter.
            run: where it goes.
            wandb: ``offline``, ``online`` or ``disabled``.
        """
        own = [*QUIET, *(self.whose if wandb != "disabled" else ())]
        before, after = self.command[: self._place_of_own], self.command[self._place_of_own :]
        first, then = ([word for given in part for word in self._resolved(given, chosen)] for part in (before, after))
        return [*first, *own, *then, f"--run_dir={run}", f"--wandb={wandb}"]

    @property
    def _place_of_own(self) -> int:
        """Before the words of the user, which so count: after ``maxmargin fit``, or where a program gets its args."""
        if self.is_ours:
            return self.command.index("fit") + 1
        return next(i for i, word in enumerate(self.command) if word in ARGS)

    @property
    def is_ours(self) -> bool:
        """Whether the command is ``maxmargin``, whose words can be checked before any run."""
        found = [word for given in self.command for word in self._resolved(given, {})]
        return found[: len(MAXMARGIN)] == MAXMARGIN

    def _resolved(self, word: str, chosen: dict[str, Any]) -> list[str]:
        if word in ARGS:
            return [found for name, value in chosen.items() for found in _argument(word, name, value)]
        if word == "maxmargin" and word == next((w for w in self.command if w != "${env}"), None):
            return MAXMARGIN
        return {"${env}": [], "${interpreter}": ["python"], "${program}": [self.program]}.get(word, [word])


def _argument(macro: str, name: str, value: Any) -> list[str]:
    if macro == "${args_no_hyphens}":
        return [f"{name}={text_of(value)}"]
    if macro == "${args_no_boolean_flags}" and isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={text_of(value)}"]


def text_of(value: Any) -> str:
    """As a command line has it: text as it is, a number as Python writes it, all else as JSON, which YAML is too.

    Example:
        >>> text_of("a b"), text_of(None), text_of(True), text_of([0.0, 1]), text_of(1e-5)
        ('a b', 'null', 'true', '[0.0, 1]', '1e-05')
    """
    if isinstance(value, bool | list | dict) or value is None:
        return json.dumps(value, default=str)
    return str(value)


def read(file: Path) -> Sweep:
    """The sweep of a file.

    Raises:
        InputError: it is none that can be run here; the message names the file and the key.
    """
    try:
        check_config(str(file))  # that it is a mapping with each key once
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        return _sweep(found)
    except (ValueError, yaml.YAMLError) as error:  # also of a date that is none
        told = " ".join(str(error).removeprefix("config: ").removeprefix(str(file)).lstrip(": ").split())
        raise InputError(f"{file}: {told}") from error


def _sweep(found: dict[str, Any]) -> Sweep:
    _refuse_unknown("", found, KEYS)
    if found.get("method") != "grid":
        raise InputError(f"method: {found.get('method')} is no grid; others need W&B's server")
    name = _text(found, "name", "sweep")
    if set("/\\") & set(name) or not name.strip("."):
        raise InputError(f"name: {name!r} would be another folder than one in runs; use no / or \\")
    metric, maximize = _metric(found.get("metric", {}))
    values = _parameters(found.get("parameters"))
    cap = found.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise InputError(f"run_cap: {cap!r}; expected a positive number")
    runs = _product(map(len, values.values()))
    if min(runs, cap or runs) > MOST_RUNS:
        raise InputError(f"parameters: {runs:,} runs are more than {MOST_RUNS:,}; say how many with run_cap")
    command, program = _command(found)
    given = {key: _text(found, key, "") for key in ("project", "entity")}
    whose = [f"--wandb_group={name}", *(f"--wandb_{key}={text}" for key, text in given.items() if text)]
    return Sweep(name, values, command, program, metric, maximize, tuple(whose), cap)


def _product(lengths: Iterable[int]) -> int:
    found = 1
    for length in lengths:
        found *= length
    return found


def _refuse_unknown(where: str, found: dict[Any, Any], known: Iterable[str]) -> None:
    for key in found:
        if key not in known:
            raise InputError(f"{where}{key}: nothing is known of it here; expected {', '.join(known)}")


def _text(found: dict[str, Any], key: str, default: str) -> str:
    text = found.get(key, default)
    if not isinstance(text, str) or not (text or not default) or not text.isprintable():
        raise InputError(f"{key}: {text!r} is no text")
    return text


def _metric(found: Any) -> tuple[str, bool]:
    if not isinstance(found, dict):
        raise InputError(f"metric: {found!r}; expected its name and goal")
    _refuse_unknown("metric.", found, ("name", "goal"))
    name, goal = found.get("name", "direction_gap/attention"), found.get("goal", "minimize")
    if goal not in GOALS:
        raise InputError(f"metric.goal: {goal!r}; expected {' or '.join(GOALS)}")
    if not isinstance(name, str):
        raise InputError(f"metric.name: {name!r}; expected a key of summary.json")
    key = find_key(name)
    if key is not None and key.format == "text":
        raise InputError(f"metric.name: {name} is text, and the best run is one by a number; show it with --keys")
    return name, goal == "maximize"


def _parameters(found: Any) -> dict[str, list[Any]]:
    if not isinstance(found, dict) or not found:
        raise InputError("parameters: there are none; a grid has at least one")
    return {_name(name): _values(f"parameters.{name}", parameter) for name, parameter in found.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.isprintable() or set(name) & set(" =") or name.startswith("-"):
        raise InputError(f"parameters.{name}: no name that a command line has; write it as model.head_lr")
    if name in OF_THE_SWEEP:
        raise InputError(f"parameters.{name}: the sweep itself says it of each run; leave it out")
    return name


def _values(where: str, parameter: Any) -> list[Any]:
    if not isinstance(parameter, dict):
        raise InputError(f"{where}: {parameter!r}; expected value or values")
    if "parameters" in parameter:
        raise InputError(f"{where}: it has parameters of its own; write each in one word, as model.head_lr")
    if not {"value", "values"} & parameter.keys():
        raise InputError(f"{where}: it has neither value nor values, and a grid needs them")
    _refuse_unknown(f"{where}.", parameter, PARAMETER_KEYS)
    if {"value", "values"} <= parameter.keys():
        raise InputError(f"{where}: it has both value and values; leave one out")
    key = "value" if "value" in parameter else "values"
    kind = "constant" if key == "value" else "categorical"
    if parameter.get("distribution", kind) != kind:
        raise InputError(f"{where}.distribution: {parameter['distribution']}; {key} are {kind}; leave it out")
    values = [parameter["value"]] if key == "value" else parameter["values"]
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}.values: {values!r}; expected a list with at least one value")
    texts = [text_of(value) for value in values]
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise InputError(f"{where}.values: {text} is there twice, and the second run would be the first again")
        if "\0" in text:
            raise InputError(f"{where}.values: {text!r} has a zero byte, which no command line can have")
    return values


def _command(found: dict[str, Any]) -> tuple[list[str], str]:
    given = found.get("command", list(COMMAND))
    if not isinstance(given, list) or not given or any(isinstance(word, list | dict) for word in given):
        raise InputError(f"command: {given!r}; expected a list of words")
    words = [text_of(word) for word in given]
    known = ("${env}", "${interpreter}", "${program}", *ARGS)
    unknown = next((word for word in words if "${" in word and word not in known), None)
    if unknown is not None:
        raise InputError(f"command: {unknown} needs W&B's agent; known here are {', '.join(known)}")
    if not set(ARGS) & set(words):
        raise InputError("command: without ${args} the parameters would be said to no run; add it")
    if any(word.partition("=")[0] == "--run_dir" for word in words):
        raise InputError("command: --run_dir is what the sweep itself says of each run; leave it out")
    program = _program(found) if "${program}" in words else ""
    begin = next((word for word in words if word != "${env}"), "")
    if begin not in ("maxmargin", *known) and shutil.which(begin) is None:
        raise InputError(f"command: there is no program {begin}; begin with maxmargin fit")
    plain = [word for word in words if word != "${env}"]
    after = plain[1:] if begin == "maxmargin" else plain[3:] if plain[1:3] == MAXMARGIN[1:] else ["fit"]
    if after[:1] != ["fit"]:
        raise InputError("command: of maxmargin's commands only fit leaves what a sweep compares; begin maxmargin fit")
    return words, program


def _program(found: dict[str, Any]) -> str:
    program = found.get("program")
    if program is None:
        raise InputError("program: the command names it, and it is missing; give it, or a command with maxmargin fit")
    if not isinstance(program, str) or not Path(program).is_file():
        raise InputError(f"program: {program} is no file; name a script that takes the words of maxmargin fit")
    return program
