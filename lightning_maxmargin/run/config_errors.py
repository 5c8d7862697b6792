"""Configs: which classes one may name, and what was wrong with one in a single line."""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run import parsers

#: A ``class_path`` imports and runs a module, so a config from elsewhere may name these packages alone.
TRUSTED_PACKAGES = [
    "lightning_maxmargin",
    "pytorch_lightning",
    "lightning",
    "torch",
    "torchmetrics",
    "lightning_fabric",
]

#: How the lines of a nested message begin that only say where it is nested.
NOISE_PREFIXES = (
    "Parser key", "Does not validate", "Subtypes:", "Errors:", "Given value", "Problem with given class_path",
    "Expected a <class 'NoneType'>", "Expected a path but", "Type collections",
)  # fmt: skip

#: Lines that say how one names a class: there is a better reason where there is another.
CLASS_PREFIXES = ("Not a valid subclass", "Subclass types expect", "a class path", "a dict with")

#: Of a whole number that is more than any floating one.
TOO_LARGE = "it has more digits than any number here; give a smaller one"

UNKNOWN_OPTION_PATTERNS = (
    r"unrecognized arguments: (--[\w.\-]+)",
    r"does not accept option '([\w.]+)'",
    r"Option '([\w.]+)' is not accepted",
    r"Key '([\w.]+)' is not expected",
)


@contextmanager
def imports_allowed(trust_config: bool) -> Iterator[None]:
    """Inside the block a config may import from :data:`TRUSTED_PACKAGES` alone, or, with ``trust_config``, any module.

    What was allowed before holds again after it: one command of a process does not decide for the next.
    """
    # jsonargparse itself only adds to what is denied, which so would outlast the command.
    before = {key: value for key, value in parsing_settings.items() if key.startswith("import_path")}
    path = list(sys.path)
    if not trust_config:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=TRUSTED_PACKAGES)
    elif os.getcwd() not in sys.path:
        # As python -m does it: a class in a file of the directory that one is in.
        sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        parsing_settings.update(before)
        sys.path[:] = path


#: Commands whose parser puts them before the keys.
OF_A_TRAINER = ("fit", "validate", "test", "predict")


def one_line(
    error: BaseException, parser: ArgumentParser | None = None, models: Sequence[type] = (), command: str = "fit"
) -> str:
    """What was wrong, where, and what to do: the innermost message of a parser's nested one.

    Args:
        error: what parsing or instantiation raised.
        parser: offers near names for an unknown argument; by default the command's, where no Trainer runs it.
        models: classes that ``model`` may name, which offer theirs.
        command: that the words are of.

    Example:
        >>> one_line(ValueError('Parser key "model.rank":\\n  Expected a <class \\'int\\'>. Got value: x'))
        "model.rank: expected int, got 'x'"
    """
    own = next((e for e in _chain(error) if isinstance(e, InputError)), None)
    if own is not None:
        return str(own)
    text = str(error)
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', text)))
    unknown = next((m for pattern in UNKNOWN_OPTION_PATTERNS if (m := re.search(pattern, text))), None)
    if unknown:
        known_to = [parser or _parser_of(command), *map(_arguments, models)]
        return _unknown(".".join([*keys, unknown.group(1).removeprefix("--")]), known_to)
    missing = re.search(r"following arguments are required: ([\w.]*\w)", text)
    if missing:
        return _missing(".".join([*keys, missing.group(1)]) if keys else missing.group(1), command)
    denied = re.search(r"Importing '([\w.]+)' is not allowed", text)
    reason = _denied(denied.group(1)) if denied else _unfit(text) or _reason(text)
    if reason.startswith(TOO_LARGE) and (nested := re.search(r"Given value: NestedArg\(key='([\w.]+)'", text)):
        keys.append(nested[1])  # the parser names the class alone where a check of its argument raises
    return ": ".join([".".join(keys), reason] if keys else [reason])


def is_ours(error: BaseException) -> bool:
    """Whether it is an :class:`InputError`, as such or wrapped by a parser: its words are the ones to show."""
    return any(isinstance(e, InputError) for e in _chain(error))


def is_input(error: BaseException) -> bool:
    """Whether the input is at fault: the parser says so, or an :class:`InputError`, as such or wrapped by it."""
    return isinstance(error, ArgumentError) or is_ours(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it; one that was raised from itself leads to itself."""
    seen: list[BaseException] = []
    while error is not None and not any(error is before for before in seen):
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _arguments(model: type) -> ArgumentParser:
    parser = ArgumentParser()
    parser.add_class_arguments(model, "model")
    return parser


def _parser_of(command: str) -> ArgumentParser | None:
    """Of a command that no Trainer runs."""
    maker = getattr(parsers, f"{command}_parser", None)
    return None if maker is None else maker()


def _unknown(name: str, parsers: Sequence[ArgumentParser | None]) -> str:
    known = [o for p in parsers if p is not None for action in p._actions for o in action.option_strings]
    near = difflib.get_close_matches(f"--{name}", known, 1, cutoff=0.8)
    every = "--print_config" if "--print_config" in known else "--help"
    hint = f"did you mean {near[0].removeprefix('--')}?" if near else f"{every} lists every key"
    if f"--{name}" in known:
        hint = f"it is one of another class than this run's; {every} lists every key"
    return f"unknown key {name}; {hint}"


def _missing(name: str, command: str) -> str:
    """What to give for a word that has to be given."""
    parser = _parser_of(command)
    if parser is None:  # of a Trainer, of whose keys some begin with the command
        first, _, rest = name.partition(".")
        name = rest if first in OF_A_TRAINER and rest else name
        return f"{name} is missing; give --config configs/....yaml, or --{name}"
    options = {option for action in parser._actions for option in action.option_strings}
    if f"--{name}" not in options:
        return f"{name.upper()} is missing; give it after maxmargin {command}"
    return f"{name} is missing; give --{name}" + (" or --config" if "--config" in options else "")


def _denied(name: str) -> str:
    trusted = ", ".join(TRUSTED_PACKAGES[:5])
    return f"a config may name classes of {trusted}, and {name} is none; add --trust-config if you trust it"


def _unfit(text: str) -> str | None:
    """What a class or function of the user's own lacks, where a parser refuses it."""
    if found := re.search(r"Import path ([\w.]+) does not implement protocol (\w+)", text):
        return _unfit_for_protocol(found[1], found[2], text)
    if found := re.search(r"Expected an instantiatable class, but ([\w.]+) is abstract", text):
        lacks = " and ".join(sorted(_imported(found[1]).__abstractmethods__))
        return f"{found[1].rpartition('.')[2]} lacks {lacks}"
    if found := re.search(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", text):
        return f"{found[1]} is no {found[2]}; derive it from {found[2]}"
    if found := re.search(r"Expected '([\w.]+)' to be a subclass of <class '(\w+)'>", text):
        return f"{found[1]} is no {found[2]}; derive it from {found[2]}"
    if found := re.search(r"Unexpected import object .*Got value: ([\w.]+)", text):
        return f"{found[1]} is a {type(_imported(found[1])).__name__}; expected a function"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        return f"module {found[1]} has no {found[2]}"
    return None


def _unfit_for_protocol(path: str, protocol: str, text: str) -> str | None:
    home = re.search(rf"<class '([\w.]+)\.{protocol}'>", text)
    if home is None:
        return None
    parts = [part for part in vars(_imported(f"{home[1]}.{protocol}")) if not part.startswith("_")]
    lacks = [part for part in parts if not hasattr(_imported(path), part)]
    name, see = path.rpartition(".")[2], f"see {home[1].split('.', 1)[1]}.{protocol}"
    if lacks:
        return f"{name} lacks {' and '.join(lacks)}; {see}"
    return f"{name} needs the arguments and annotations of {protocol}, which a config is checked by; {see}"


def _imported(path: str) -> Any:
    """What a parser has imported already, so that it may be."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _reason(text: str) -> str:
    """The most specific of the reasons a parser lists."""
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(NOISE_PREFIXES)]
    reasons = [line for line in reasons if not line.startswith(CLASS_PREFIXES)] or reasons
    given = next((m.group(1) for line in lines if (m := re.match(r"Given value: (\S+)$", line))), None)
    inline = re.match(r'Parser key "[^"]+": *(.+)', lines[0]) if lines else None
    reason = (inline.group(1) if inline else None) or (reasons[0] if reasons else text.split("\n")[0])
    reason = re.sub(r"Expected an? <class '([\w.]+)'>", r"expected \1", reason)
    reason = re.sub(r"Expected an? typing\.Literal\[([^\]]*)\]", r"expected one of \1", reason)
    reason = re.sub(r"\. Got value: (.+)$", r", got '\1'", reason)
    reason = reason.replace("int too large to convert to float", TOO_LARGE)
    reason = re.sub(
        r"Expected a dot import path string: (\w+)", r"no class \1 is known here; give its full import path", reason
    )
    literal = re.search(r"typing\.Literal\[([^\]]*)\]", text)
    if literal is not None and "no class" in reason:
        reason = f"expected {literal[1]}, or what its class takes"
    elif literal is not None and reason.startswith("expected ") and literal[1] not in reason:
        reason = reason.replace("expected ", f"expected {literal[1]} or ", 1)
    return reason if given is None or "got" in reason or given in reason else f"{reason}, got '{given}'"


#: Where code is that is neither the user's nor run from a script: this package, the libraries and Python itself.
LIBRARIES = tuple(
    f"{folder}{os.sep}"
    for folder in (
        Path(__file__).parents[1],
        *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")),
        # Installed for one user, or by the system.
        *(Path(str(find_spec(name).origin)).parents[1] for name in ("torch", "pytorch_lightning", "jsonargparse")),  # type: ignore[union-attr]
    )
)
#: What lends its errors: they are of the words that it was given where they are raised in it.
LIGHTNING = ("pytorch_lightning", "lightning_fabric", "torch", "torchmetrics")
#: Characters of another library's error that a line quotes.
QUOTED = 400


def of_own_code(error: BaseException) -> bool:
    """Whether code of the user's own was under way: a traceback then tells more than a line."""
    paths = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(not path.startswith((*LIBRARIES, "<")) for path in paths)


def of_lightning(error: BaseException) -> bool:
    """Whether Lightning or torch itself has raised it, not code that they called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").partition(".")[0] in LIGHTNING


def quoted(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind where that is all it says.

    Example:
        >>> quoted(KeyError("lr")), quoted(ValueError("no such\\n  accelerator"))
        ("KeyError: 'lr'", 'no such accelerator')
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= QUOTED else f"{text[:QUOTED]}..."
    return text if " " in text else f"{type(error).__name__}: {text}".removesuffix(": ")


#: What torch says where an allocation fails, or has more bytes than a number can count.
LACKS_MEMORY = re.compile(r"allocate memory|not enough memory|size calculation overflowed|multiplication overflow")


def key_of_error(error: BaseException, config: Any) -> str:
    """The key of the innermost class of a config that an error was raised in: ``trainer.callbacks``; empty for none.

    Args:
        error: with its traceback.
        config: parsed.
    """
    classes = {path.rpartition(".")[2]: key for key, path, _ in named_classes(config)}
    # A parser that tries several types keeps the class in its text alone.
    tried = re.findall(r"class_path='([\w.]+)'", str(error))[:1]
    for name in [*_raised_in(error), *(path.rpartition(".")[2] for path in tried)]:
        if name in classes:
            return f"{classes[name]}: {name}"
    return ""


def lacking_memory(error: BaseException, config: Any) -> str | None:
    """The largest number of the class whose making needed more memory than there is; None for any other error.

    Args:
        error: with its traceback.
        config: parsed.
    """
    if not isinstance(error, MemoryError) and not LACKS_MEMORY.search(str(error)):
        return None
    key = key_of_error(error, config).partition(":")[0]
    given = getattr(config.get(key), "init_args", None) if key else None
    sizes = {name: x for name, x in vars(given).items() if type(x) is int} if given is not None else {}
    if not sizes:
        return None
    name = max(sizes, key=lambda name: sizes[name])
    return f"{key}.{name}: {sizes[name]}; there is no memory for so many numbers"


def _raised_in(error: BaseException) -> Iterator[str]:
    """Classes of the objects whose methods an error was raised in, innermost first."""
    for cause in reversed(list(_chain(error))):
        for frame, _ in reversed(list(traceback.walk_tb(cause.__traceback__))):
            # Of an attribute that is not there whoever asks for it is at fault.
            if "self" in frame.f_locals and frame.f_code.co_name != "__getattr__":
                yield type(frame.f_locals["self"]).__qualname__


def named_classes(config: Any, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every class that a config names, however deep: its key, its path and its options.

    Example:
        >>> config = {"data": {"class_path": "m.A", "init_args": {"by": {"class_path": "m.B", "init_args": None}}}}
        >>> [(key, path) for key, path, _ in named_classes(config)]
        [('data', 'm.A'), ('data.by', 'm.B')]
    """
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield key, config["class_path"], config.get("init_args")
        for name, value in config.items():
            yield from named_classes(value, key if name == "init_args" else f"{key}.{name}".removeprefix("."))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from named_classes(value, key)
