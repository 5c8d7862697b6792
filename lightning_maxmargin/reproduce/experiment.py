"""An experiment: a YAML file that names one function, its settings, and the claims its numbers are held against."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.panel import Panel

#: Takes the share of an experiment that is done, 0 to 1; every experiment's function has it as its first argument.
ProgressCallback = Callable[[float], None]
HOME = "lightning_maxmargin.reproduce"


@dataclass
class Outcome:
    """What an experiment's function returns.

    Attributes:
        numbers: by key; a claim about KEY shows ``naive/KEY``, where there is one, as what naive gradients give.
        panels: of the figure.
        notes: sentences that belong under the figure: what was counted, what did not converge.
        loop_ratio: speed of training over that of the public loop, one instance at a time; None where not asked.
    """

    numbers: dict[str, float]
    panels: list[Panel]
    notes: list[str] = field(default_factory=list)
    loop_ratio: float | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence and the number that decides whether it holds.

    Attributes:
        claim: the sentence.
        key: of :attr:`Outcome.numbers`.
        published: what the paper or its public code shows, as printed there; None for a claim that no paper has.
        value: with ``within``: holds where the number is this near to the value.
        within: see ``value``.
        at_least: holds where the number is no less.
        at_most: holds where the number is no more.
        why: where ours differs from what was published: the reason, with its evidence.

    Example:
        >>> Claim("a third", "x", value=0.33, within=0.01).holds({"x": 1 / 3})
        True
    """

    claim: str
    key: str
    published: float | str | None = None
    value: float | None = None
    within: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    why: str | None = None

    def __post_init__(self) -> None:
        for name in ("claim", "key"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"claims: {name} is {getattr(self, name)!r}; expected text in quotes")
        if not isinstance(self.published, int | float | str | None) or not isinstance(self.why, str | None):
            raise InputError(f"claims: {self.claim!r}: expected a number or text in published and why")
        for name in ("value", "within", "at_least", "at_most"):
            x = getattr(self, name)
            # YAML reads -.8 as text, and true as a number that Python takes for 1.
            if x is not None and (isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x)):
                raise InputError(f"claims: {self.claim!r}: {name} is {x!r}; expected a finite number, written as 0.8")
        if self.within is not None and self.within < 0:
            raise InputError(f"claims: {self.claim!r}: within is {self.within!r}; expected 0 or more")
        if (self.value is None) != (self.within is None):
            raise InputError(f"claims: {self.claim!r} has one of value and within; give both")
        if self.value is None and self.at_least is None and self.at_most is None:
            raise InputError(f"claims: {self.claim!r} states no bound; give value and within, at_least or at_most")

    def holds(self, numbers: dict[str, float]) -> bool:
        """Whether the number is there, finite and inside every stated bound."""
        x = numbers.get(self.key, float("nan"))
        if self.value is not None and self.within is not None and not abs(x - self.value) <= self.within:
            return False
        return (self.at_least is None or x >= self.at_least) and (self.at_most is None or x <= self.at_most) and x == x

    @property
    def bound(self) -> str:
        """The bounds as text."""
        bounds = []
        if self.value is not None:
            bounds.append(f"{self.value:g} ± {self.within:g}")
        if self.at_least is not None:
            bounds.append(f"≥ {self.at_least:g}")
        if self.at_most is not None:
            bounds.append(f"≤ {self.at_most:g}")
        return ", ".join(bounds)


@dataclass(frozen=True)
class Experiment:
    """One YAML file of ``configs/reproduce``, or a Python file of one's own.

    Attributes:
        name: of the file.
        title: what is shown.
        source: the paper and its experiment.
        function: import path of ``f(progress, **settings) -> Outcome``.
        settings: its arguments.
        quick: those that ``--quick`` puts in their place.
        claims: what its numbers are held against.
    """

    name: str
    title: str
    source: str
    function: str
    settings: dict[str, Any]
    quick: dict[str, Any]
    claims: tuple[Claim, ...]

    def run(self, progress: ProgressCallback, quick: bool = False) -> Outcome:
        """Calls the function.

        Raises:
            InputError: it returns something else than an :class:`Outcome` with numbers.
        """
        outcome = self.call()(progress, **self.chosen(quick))
        numbers = outcome.numbers if isinstance(outcome, Outcome) else None
        if not isinstance(numbers, dict) or not all(isinstance(x, Real) for x in numbers.values()):
            raise InputError(f"{self.name}: {self.function} returns no Outcome with a dictionary of numbers")
        if not all(isinstance(panel, Panel) for panel in outcome.panels):
            raise InputError(f"{self.name}: {self.function} returns panels that are none")
        return outcome

    def chosen(self, quick: bool) -> dict[str, Any]:
        """The settings of a full or a quick run."""
        return {**self.settings, **(self.quick if quick else {})}

    def require(self, quick: bool) -> None:
        """Calls ``require(**settings)`` of the function's module, if it has one: it checks optional extras.

        Raises:
            InputError: an extra is missing.
        """
        need = getattr(_module(self.function), "require", None)
        if callable(need):
            need(**self.chosen(quick))

    def call(self) -> Callable[..., Outcome]:
        """The function itself.

        Raises:
            InputError: there is none of this name, or it does not take these settings.
        """
        found = getattr(_module(self.function), self.function.rpartition(".")[2], None)
        if not callable(found):
            raise InputError(f"{self.name}: there is no function {self.function}")
        for quick in (False, True):
            try:
                inspect.signature(found).bind(None, **self.chosen(quick))
            except (TypeError, ValueError) as error:
                raise InputError(f"{self.name}: settings do not fit {self.function}: {error}") from error
        return found


def _module(function: str) -> Any:
    try:
        return importlib.import_module(function.rpartition(".")[0])
    # A module may raise anything while it is imported.
    except Exception as error:
        raise InputError(f"reproduce: function {function} cannot be imported ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """Class and message without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def read_experiment(path: Path, trusted: bool = False) -> Experiment:
    """Reads and checks one YAML file, or one Python file whose ``EXPERIMENT`` has the same keys.

    Args:
        path: of the file; ``function`` in a Python file is the function itself.
        trusted: whether its function may lie outside this package: naming one runs its module.

    Raises:
        InputError: not such a file, an unknown or missing key, a function that is not there.
    """
    content = _content_of_python(path, trusted) if path.suffix == ".py" else _content_of_yaml(path)
    _check(path, content)
    if not trusted and not content["function"].startswith(f"{HOME}."):
        raise InputError(
            f"reproduce: {path}: function {content['function']} is not of {HOME}; allow it: --trust-config"
        )
    try:
        claims = tuple(_claim(entry) for entry in content["claims"] or ())
    except InputError as error:
        raise InputError(f"reproduce: {path}: {error}") from error
    settings, quick = content["settings"] or {}, content.get("quick") or {}
    experiment = Experiment(
        path.stem, content["title"], content["source"], content["function"], settings, quick, claims
    )
    experiment.call()
    return experiment


def _content_of_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # also of a date that is none
        raise InputError(f"reproduce: {path} cannot be read ({' '.join(str(error).split())})") from error


def _content_of_python(path: Path, trusted: bool) -> Any:
    """``EXPERIMENT`` of a Python file, with the import path in place of its function."""
    if not trusted:
        raise InputError(f"reproduce: {path}: a Python file of your own runs when it is read; allow it: --trust-config")
    # Not by its own name, which another module may have.
    name = f"experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # A module may raise anything while it is imported.
    except Exception as error:
        raise InputError(f"reproduce: {path} cannot be imported ({one_line(error)})") from error
    found = getattr(module, "EXPERIMENT", None)
    if not isinstance(found, dict):
        raise InputError(f"reproduce: {path} lacks EXPERIMENT, a dictionary with the keys of configs/reproduce")
    function = found.get("function")
    if not callable(function):
        raise InputError(f"reproduce: {path}: EXPERIMENT lacks 'function', f(tick, **settings) -> Outcome")
    return {**found, "function": f"{name}.{function.__name__}"}


def _check(path: Path, content: Any) -> None:
    """That every key is there and of its type; claims one by one are not checked."""
    if not isinstance(content, dict):
        raise InputError(f"reproduce: {path} is no experiment; see configs/reproduce")
    wanted = {f.name for f in fields(Experiment)} - {"name"}
    for key in sorted(content.keys() ^ wanted, key=str):
        if key in content or key != "quick":
            raise InputError(f"reproduce: {path}: key {key!r} is {'unknown' if key in content else 'missing'}")
    for key, x in content.items():
        kind = {"settings": dict, "quick": dict, "claims": list}.get(key, str)
        if not isinstance(x, kind) and (kind is str or x is not None):
            expected = {dict: "keys with values", list: "a list", str: "text"}[kind]
            raise InputError(f"reproduce: {path}: {key} is {x!r}; expected {expected}")
        if kind is dict and not set(map(type, x or ())) <= {str}:
            raise InputError(f"reproduce: {path}: {key}: expected text as names of settings")


def _claim(entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise InputError(f"a claim is {entry!r}; it needs claim, key and a bound")
    unknown = sorted(map(str, entry.keys() - {f.name for f in fields(Claim)}))
    if unknown or "claim" not in entry or "key" not in entry:
        raise InputError(f"a claim needs claim and key; unknown: {', '.join(unknown) or 'nothing'}")
    return Claim(**entry)
