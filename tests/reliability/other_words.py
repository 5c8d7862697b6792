"""Words of every command but fit: refused in one line that leaves nothing and touches no run, or done."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import io
import random
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_maxmargin.cli import COMMANDS
from tests.reliability.words import (
    CHEAP,
    STRANGE,
    TEXTS,
    Case,
    Left,
    misspelt,
    names_of,
    path_of,
    place_of,
    run,
    state_of_process,
    word_of,
    wrong_refusal,
)

#: Numbers above would be done as said: for hours; of random starts of a path, 30 ms each, for a minute.
LARGEST = 1e4
MOST_STARTS = 100
#: What a command that reads a run may be given in its place.
NO_RUNS = ("", ".", "..", "nowhere", "texts.csv", "a\x00b", "r" * 300, "/proc", "[bold]x[/red]", "empty")
#: What a command says whatever else is wrong; those of a Trainer check its words and the config first.
OF_ALL = {"reproduce": ("no experiment",), **dict.fromkeys(("layers", "path", "evaluate", "compare", "report"), ())}
#: What a command writes beside what it is told to.
WRITTEN = {"predict": {"predictions.jsonl", "predictions.html"}, "path": {"run"}}
#: What is said of what stands in the place of a run.
NAMED = (
    "run",
    "RUN",
    "model/",
    "experiment",
    "summary",
    "texts",
    "documents",
    "data",
    "unknown",
    "unrecognized",
    "name",
    "file",
)
#: Words that end a command before it does anything, and those whose values are none of its own.
HELPS = ("help", "print_config")


@dataclass(frozen=True)
class Runs:
    """Finished runs that commands read: one on texts, another of its kind, one of a paper's example."""

    folder: Path

    @property
    def text(self) -> str:
        return str(self.folder / "text")

    @property
    def other(self) -> str:
        return str(self.folder / "other")

    @property
    def paper(self) -> str:
        return str(self.folder / "paper")

    def contents(self) -> dict[str, bytes]:
        """Of every file."""
        return {str(file): file.read_bytes() for file in sorted(self.folder.rglob("*")) if file.is_file()}


@functools.cache
def finished() -> Runs:
    """Trained once in a process, in a folder that goes with it."""
    folder = Path(_keep(tempfile.TemporaryDirectory()).name)
    (folder / "texts.csv").write_text(TEXTS)
    splits = [word for split in ("train", "val", "test") for word in (f"--data.{split}", str(folder / "texts.csv"))]
    text = ["--config", path_of("text/finetune"), *splits, *CHEAP]
    paper = ["--config", path_of("joint/relaxed"), *CHEAP]
    for name, words in (("text", text), ("other", [*text, "--seed_everything", "1"]), ("paper", paper)):
        left = run(["fit", *words, "--run_dir", name], folder)
        assert left.status == 0, left.err
    return Runs(folder)


_KEPT: list[Any] = []


def _keep(folder: tempfile.TemporaryDirectory[str]) -> tempfile.TemporaryDirectory[str]:
    _KEPT.append(folder)
    return folder


def good(command: str, rng: random.Random) -> list[str]:
    """Words of this command that are done in seconds, in a folder with ``texts.csv``."""
    runs = finished()
    if command in ("validate", "test", "predict"):
        of = rng.choice([runs.text, runs.paper]) if command == "predict" else runs.text
        words = ["--config", f"{of}/config.yaml", "--ckpt_path", f"{of}/checkpoints/last.ckpt", *CHEAP[:-2]]
        return [*words, *(("--data.predict", "texts.csv") if of == runs.text and command == "predict" else ())]
    return {
        "layers": ["--data.train", "texts.csv", "--folds", "2", "--epochs", "1"],
        "path": ["--config", path_of("paths/local"), "--radii", "[3, 10]", "--starts", "1", "--run_dir", "run"],
        "reproduce": ["nothing", "--quick", "--out", "out"],
        "evaluate": [runs.text, "--data", "texts.csv", "--documents", "2", "--gradients", "false"],
        "compare": [runs.text, runs.other, "--data", "texts.csv"],
        "report": [runs.paper],
    }[command]


@functools.cache
def options_of(command: str) -> tuple[str, ...]:
    """Names of its options, as its help has them."""
    from lightning_maxmargin.cli import TRAINER_COMMANDS, main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main([command, "--help.full" if command in TRAINER_COMMANDS else "--help"])
    found = set(re.findall(r"^  (?:-\w, )?--([a-z_.]+)", out.getvalue(), re.MULTILINE))
    return tuple(sorted(name for name in found if name.rpartition(".")[2] not in HELPS))


def value_of_an_option(command: str, rng: random.Random) -> Case:
    """A strange value of an option."""
    key = rng.choice(options_of(command))
    most = MOST_STARTS if key == "starts" else LARGEST
    word = word_of(rng.choice([x for x in STRANGE if not _is_long(x, most)]))
    # A file or column that is not there is named itself; reproduce has been asked for an experiment that is none.
    names = (*names_of(key), *([word[:20]] if len(word) > 2 else []), *OF_ALL.get(command, ("trainer", "config")))
    return Case([command, *good(command, rng), f"--{key}={word}"], names)


def misspelt_option(command: str, rng: random.Random) -> Case:
    """An option that is none."""
    known = options_of(command)
    wrong = misspelt(rng, rng.choice(known))
    if any(option.startswith(wrong) for option in known):
        return misspelt_option(command, rng)
    return Case([command, *good(command, rng), f"--{wrong}", "1"], (wrong.rpartition(".")[2],), refused=True)


def no_run(command: str, rng: random.Random) -> Case:
    """Something else in the place of a run or a name; a word too many."""
    words, place = good(command, rng), rng.choice(NO_RUNS)
    if rng.random() < 0.3:
        return Case(
            [command, *words, place or "x"], NAMED, refused=None if command in ("reproduce", "compare") else True
        )
    at = next((i for i, word in enumerate(words) if word in (finished().text, finished().paper)), 0)
    words[at] = place
    return Case([command, *words], NAMED, refused=True)


def trial(rng: random.Random) -> str | None:
    """One drawn case: None where it held, else what went wrong."""
    command = rng.choice([name for name in COMMANDS if name != "fit"])
    of_options = (value_of_an_option, misspelt_option) if options_of(command) else ()
    of_a_run = (no_run,) if command in ("evaluate", "compare", "report", "reproduce") else ()
    case = rng.choice([*of_options, *of_a_run])(command, rng)
    with tempfile.TemporaryDirectory() as folder:
        wrong = judge(case, Path(folder))
    return None if wrong is None else f"{wrong} [{' '.join(case.argv)[:400]}]"


def judge(case: Case, folder: Path) -> str | None:
    """Runs the case in ``folder``, which is empty, and says what went wrong."""
    (folder / "texts.csv").write_text(TEXTS)
    (folder / "empty").mkdir()
    runs, state = finished(), state_of_process()
    before = runs.contents()
    left: Left = run(case.argv, folder)
    now = runs.contents()
    if state_of_process() != state:
        return f"silent: the process is another than before ({state_of_process()})"
    if (folder / "texts.csv").read_text() != TEXTS:
        return "silent: the user's file is another"
    if left.status is None:
        return f"traceback: {left.err.strip().splitlines()[-1][:300]} <- {place_of(left.err)}"
    changed = sorted(Path(name).name for name in {*before, *now} if before.get(name) != now.get(name))
    # A report that is asked for again is written again.
    if changed and not (left.status == 0 and case.argv[0] == "report" and set(changed) <= {"report.html"}):
        return f"silent: changed {changed[:5]} of a run"
    if left.status != 0:
        return wrong_refusal(case, left)
    told = WRITTEN.get(case.argv[0], set()) | {word.partition("=")[2] or word for word in case.argv}
    told |= {f"{word}.html" for word in told if case.argv[0] == "predict"}  # the page beside its output
    if case.argv[0] == "compare":
        told |= {str(Path(word).with_suffix(".html")) for word in told if word.endswith(".json")}
        told |= set(fnmatch.filter(left.new, "compare-*.html"))  # named after the two runs, and never over another
    strangers = [name for name in left.new if not any(name == t or name.startswith(f"{t}/") for t in told if t)]
    return f"silent: {strangers or 'accepted'}" if strangers or case.refused else None


def _is_long(value: Any, most: float) -> bool:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return not isinstance(value, bool) and most < abs(float(value)) < float("inf")
    return isinstance(value, int)  # one that no float holds
