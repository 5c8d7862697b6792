"""Files and functions of the package that `maxmargin fit --config CONFIG` executes, by room.

    python scripts/executed.py [--list] [CONFIG] [argument of fit ...]

Counted is every function and method written in lightning_maxmargin that is called at least once between the start of
the command and its end, in any thread, and every file that has one. What Python makes up itself is not counted:
module and class bodies, lambdas, comprehensions and the methods of dataclasses; nor is a function inside another one,
which belongs to the one around it. It says how much of the library a reader meets who follows one training.
"""

import collections
import inspect
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import lightning_maxmargin
from lightning_maxmargin.cli import main as maxmargin

PACKAGE = Path(lightning_maxmargin.__file__).parent
RELAXED = PACKAGE.parent / "configs/joint/relaxed.yaml"


def called_codes(arguments: list[str]) -> set[CodeType]:
    """Code objects that `maxmargin ARGUMENTS` calls; its return code has to be 0."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        status = maxmargin(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # typeshed has no None
    if status:
        raise SystemExit(status)
    return codes


def written(code: CodeType) -> tuple[str, str] | None:
    """(file, function) of a function that stands in the package's source, or None."""
    path = Path(code.co_filename)
    is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
    if not is_function or "<locals>" in code.co_qualname or PACKAGE not in path.parents:
        return None
    return path.relative_to(PACKAGE).as_posix(), code.co_qualname


def report(functions: set[tuple[str, str]]) -> None:
    """A line for each room, and their sum."""
    files = collections.Counter(_room(file) for file in {file for file, _ in functions})
    counts = collections.Counter(_room(file) for file, _ in functions)
    for room in sorted(counts):
        print(f"{room:<12} {files[room]:>4} files {counts[room]:>5} functions")
    print(f"{'all':<12} {sum(files.values()):>4} files {len(functions):>5} functions")


def _room(file: str) -> str:
    return file.split("/")[0] if "/" in file else "(root)"


def main() -> None:
    # Read now: the command line of Lightning writes over it.
    arguments = [argument for argument in sys.argv[1:] if argument != "--list"]
    every = "--list" in sys.argv
    config = str(Path(arguments[0]).resolve()) if arguments else str(RELAXED)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        codes = called_codes(["fit", "--config", config, "--run_dir", "run", *arguments[1:]])
        os.chdir(PACKAGE.parent)
    functions = {name for code in codes if (name := written(code))}
    if every:
        print(*(f"{file} {function}" for file, function in sorted(functions)), sep="\n")
    report(functions)


if __name__ == "__main__":
    main()
