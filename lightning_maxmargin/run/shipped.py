"""The configs that come with the package: found by name from any directory, also after a plain ``pip install``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.config_text import check_config

PACKAGE = Path(__file__).parents[1]
FLAGS = ("--config", "-c")
#: A flag and its config in one word.
GLUED = re.compile("--config=|-c=?(?=.)", re.DOTALL)


def shipped_folder() -> Path:
    """``configs`` inside an installed package, or, in a clone, beside it."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def shipped_names() -> list[str]:
    """What ``--config`` knows without a file: ``joint/relaxed``, ``tensor``, ...

    Example:
        >>> "joint/relaxed" in shipped_names()
        True
    """
    folder = shipped_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> str:
    """The file that a config's name stands for; one on disk wins over a shipped one.

    Args:
        name: a path, or a shipped config: ``joint/relaxed``, ``joint/relaxed.yaml``, ``configs/joint/relaxed.yaml``.
            Standard input, ``-``, and a config that is written out are no names and stay what they are.

    Raises:
        InputError: there is no such file and no such shipped config; the message has the nearest names.

    Example:
        >>> find_config("joint/relaxed").endswith("configs/joint/relaxed.yaml")
        True
    """
    if name == "-" or set("{\n") & set(name):
        return name
    plain = name.removesuffix(".yaml").removeprefix("configs/")
    on_disk = [name, f"{plain}.yaml", f"configs/{plain}.yaml"]
    found = next((path for path in on_disk if is_file(path)), None)
    if found is not None:
        return found
    known = shipped_names()
    if plain in known:
        return str(shipped_folder() / f"{plain}.yaml")
    near = difflib.get_close_matches(plain, known, 3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the shipped ones are in {shipped_folder()}"
    raise InputError(f"config: {name} is neither a file nor a shipped config; {hint}")


def is_file(path: str) -> bool:
    """Whether there is a file of this name, which may be none that a file can have.

    Example:
        >>> is_file("x" * 300)
        False
    """
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        # Too long for a file's name, or with a zero byte: no file has it.
        return False


def with_files(argv: Sequence[str]) -> list[str]:
    """The arguments of a command: first each config, checked as a text and named by its file, then the words.

    A parser takes what comes later for the newer word, so that a config after a word would take that word back.

    Raises:
        InputError: there is no such config, or it is no mapping of YAML, each key once.

    Example:
        >>> with_files(["--name", "mine", "--config={name: theirs}"])
        ['--config', '{name: theirs}', '--name', 'mine']
    """
    configs: list[str] = []
    words: list[str] = []
    rest = iter(argv)
    for given in rest:
        glued = GLUED.match(given)
        name = given[glued.end() :] if glued else next(rest, None) if given in FLAGS else None
        if name is None:
            words.append(given)
        else:
            configs += ["--config", _checked(name)]
    return configs + words


def _checked(name: str) -> str:
    path = find_config(name)
    if path != "-":
        check_config(path)
    return path


#: Classes that a command line names by their bare names although their modules are imported on first use.
TEXT_CLASSES = ("TextData", "TextSelection")
TEXT_CONFIG = "text/finetune"


def with_text(argv: Sequence[str]) -> list[str]:
    """Arguments with full names of text's classes, and its config where there is none: its data need its model.

    Example:
        >>> with_text(["--data", "TextData", "--config", "mine.yaml"])
        ['--data', 'lightning_maxmargin.TextData', '--config', 'mine.yaml']
    """
    found = []
    for given in argv:
        flag, equals, value = given.rpartition("=")
        found.append(f"{flag}{equals}lightning_maxmargin.{value}" if value in TEXT_CLASSES else given)
    is_text = any(given.endswith("lightning_maxmargin.TextData") for given in found)
    return ["--config", find_config(TEXT_CONFIG), *found] if is_text and "--config" not in argv else found
