"""Checkpoints that are damaged or altered: refused in a line before any work, or the run goes on as from a sound one.

One that holds no sum of its content (an earlier version's, or Lightning's own) is taken as it is, which is warned of.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_maxmargin.cli import main
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import checksum_path, verify_checkpoint
from lightning_maxmargin.run.content import SUM
from tests.conftest import QUIET, config
from tests.reliability.words import TEXTS

RUNS = {
    "whole": ("--config", config("joint/tight")),
    "minibatches": (
        "--config", config("joint/random"), "--data.batch_size", "4", "--model.optimizer", "torch.optim.Adam",
        "--model.gradient", "centred", "--model.optimizer.lr", "0.01",
    ),
    "text": ("--config", config("text/finetune"), "--trainer.max_epochs", "-1", "--data.train"),
}  # fmt: skip
SAVED_AT, END = "20", "25"
#: Of what the checks refuse before any work, the share that goes through the whole command as well.
THROUGH_THE_COMMAND = 0.03
Content = dict[str, Any]


class Told(NamedTuple):
    """What a command left: its status (None where it raised), its errors and warnings."""

    status: int | None
    text: str


class Sound(NamedTuple):
    """A checkpoint, and what a run from it ends with."""

    path: Path
    end: Content


def command(*words: str) -> Told:
    """``maxmargin fit`` in this process."""
    err, before = io.StringIO(), sys.argv
    sys.argv = ["maxmargin"]
    os.environ.pop("MAXMARGIN_RUN_DIR", None)
    with (
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        try:
            status: int | None = main(["fit", *QUIET, *words])
        except Exception:
            status = None
            traceback.print_exc()
    sys.argv = before
    return Told(status, "\n".join([err.getvalue(), *(str(w.message) for w in said)]))


def scratch() -> Path:
    """A folder that ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="maxmargin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def kept(run_dir: Path) -> Content:
    content: Content = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: content[name] for name in ("global_step", "state_dict", "optimizer_states")}


def words_of(name: str) -> tuple[str, ...]:
    """Of one of the runs; that of text reads a file."""
    return (*RUNS[name], *([texts()] if name == "text" else []))


@functools.cache
def texts() -> str:
    """A file of a dozen, made once in a process."""
    file = scratch() / "texts.csv"
    file.write_text(TEXTS)
    return str(file)


@functools.cache
def sound(name: str) -> Sound:
    """Made once in a process."""
    folder = scratch()
    first = command(*words_of(name), "--run_dir", str(folder / "run"), "--trainer.max_steps", SAVED_AT)
    assert first.status == 0, first.text
    path = folder / "run" / "checkpoints" / "last.ckpt"
    told = goes_on(name, path, folder / "end")
    assert told.status == 0, told.text
    return Sound(path, kept(folder / "end"))


def goes_on(name: str, path: Path, run_dir: Path) -> Told:
    return command(*words_of(name), "--run_dir", str(run_dir), "--trainer.max_steps", END, "--ckpt_path", str(path))


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# --- bytes --------------------------------------------------------------------------------------------------------


def flipped(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def truncated(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.choice((0, 1, rng.randrange(len(data)), len(data) - rng.randint(1, 30)))]


def zeroed(data: bytearray, rng: random.Random) -> bytearray:
    at, size = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
    data[at : at + size] = bytes(len(data[at : at + size]))
    return data


def duplicated(data: bytearray, rng: random.Random) -> bytearray:
    at, size = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
    return data[:at] + data[at : at + size] * 2 + data[at + size :]


def swapped(data: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice((16, 64, 512))
    a, b = (rng.randrange(len(data) // size) * size for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def appended(data: bytearray, rng: random.Random) -> bytearray:
    return data + rng.randbytes(rng.choice((1, 100, 70_000)))


BYTES = (flipped, truncated, zeroed, duplicated, swapped, appended)


def damage_bytes(path: Path, rng: random.Random, _ran: Path) -> str:
    how = rng.choice(BYTES)
    path.write_bytes(how(bytearray(path.read_bytes()), rng))
    return how.__name__


# --- parts of the zip file ----------------------------------------------------------------------------------------


def damage_parts(path: Path, rng: random.Random, _ran: Path) -> str:
    """A zip file whose own sums hold."""
    with zipfile.ZipFile(path) as old:
        parts = [(item.filename, old.read(item)) for item in old.infolist()]
    at, how = (
        rng.randrange(len(parts)),
        rng.choice(("removed", "renamed", "reordered", "replaced", "exchanged", "twice")),
    )
    name, data = parts[at]
    if how == "removed":
        del parts[at]
    elif how == "renamed":
        parts[at] = rng.choice((name + "x", name.replace("/", "_"), "../" + name, name.upper())), data
    elif how == "reordered":
        rng.shuffle(parts)
    elif how == "replaced":
        parts[at] = name, bytes(flipped(bytearray(data), rng)) if data else b"x"
    elif how == "exchanged":
        other = rng.randrange(len(parts))
        parts[at], parts[other] = (name, parts[other][1]), (parts[other][0], data)
    else:
        parts.append((name, rng.randbytes(len(data))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        with zipfile.ZipFile(path, "w") as new:
            for name, data in parts:
                new.writestr(name, data)
    return f"{how} {name}"


# --- content ------------------------------------------------------------------------------------------------------


class Payload:
    """Would leave a file where it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return Path.touch, (self.ran,)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each thing that a checkpoint holds."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def holder(content: Content, at: tuple[Any, ...]) -> Any:
    return functools.reduce(lambda found, key: found[key], at[:-1], content)


WRONG = (None, "x", "", -1, 10**30, 2.5, float("nan"), float("inf"), [], {}, True, b"x", (1,), [[]], {"x": {}}, "1e3")


def other_tensor(x: torch.Tensor, rng: random.Random) -> Any:
    """Of another kind, another shape, or with numbers that are none."""

    def holed(by: float) -> torch.Tensor:
        y = x.clone().double().reshape(-1)
        y[rng.randrange(max(1, len(y))) :] = by
        return y.reshape(x.shape)

    ways: list[Callable[[], Any]] = [
        lambda: x.int(), lambda: x.half(), lambda: x.float(), lambda: x.to(torch.complex64), lambda: x.bool(),
        lambda: x.reshape(-1), lambda: x[..., None], lambda: torch.zeros(0), lambda: x.tolist(), lambda: x + 1,
        lambda: holed(torch.nan), lambda: holed(torch.inf), lambda: x.repeat(*[2] * x.ndim) if x.ndim else x,
        lambda: x.to_sparse() if x.ndim else x,
    ]  # fmt: skip
    return rng.choice(ways)()


def edit(content: Content, rng: random.Random, ran: Path) -> str:
    """One thing of the content made another, or taken out, or put in."""
    every = [at for at in places(content) if at[0] != SUM]
    # Each part as often as the history, which has most of the places.
    part = rng.choice(sorted({at[0] for at in every}))
    at = rng.choice([at for at in every if at[0] == part])
    inside, key = holder(content, at), at[-1]
    how = rng.choice(("taken out", "put in", "other kind", "payload"))
    if how == "taken out":
        del inside[key]
    elif how == "put in":
        extra = copy.deepcopy(rng.choice(WRONG))
        inside.update({f"{key}x": extra}) if isinstance(inside, dict) else inside.insert(key, extra)
    elif how == "payload":
        inside[key] = Payload(ran)
    elif isinstance(inside[key], torch.Tensor) and rng.random() < 0.8:
        inside[key] = other_tensor(inside[key], rng)
    else:
        inside[key] = copy.deepcopy(rng.choice(WRONG))
    return f"{'.'.join(map(str, at))} {how}: {str(inside)[:60] if how == 'other kind' else ''}"


def known_version(content: Content, rng: random.Random, _ran: Path) -> str:
    content["pytorch-lightning_version"] = rng.choice(("0.9.0", "1.6.4", "1.9.5", "2.0.0", "99.0", "", "x", "2..1"))
    return f"version {content['pytorch-lightning_version']!r}"


def other_step(content: Content, rng: random.Random, _ran: Path) -> str:
    content["global_step"] = rng.choice((-1, 0, 19, 21, 10**18, "20", 20.0, None))
    return f"step {content['global_step']!r}"


def damage_content(path: Path, rng: random.Random, ran: Path) -> str:
    """Saved anew, with what another program could have done to it; half of them without their sum."""
    content = torch.load(path, weights_only=True)
    told = [rng.choice((edit, edit, edit, known_version, other_step))(content, rng, ran)
            for _ in range(rng.choice((1, 1, 1, 2, 3)))]  # fmt: skip
    if rng.random() < 0.5:
        content.pop(SUM, None)
        told.append("no sum")
    torch.save(content, path)
    return ", ".join(told)


DAMAGES = (damage_bytes, damage_parts, damage_content, damage_content)


# --- one case -----------------------------------------------------------------------------------------------------


def trial(rng: random.Random) -> str | None:
    """Damages a checkpoint, and goes on from it."""
    name = rng.choice(sorted(RUNS))
    whole, folder = sound(name), scratch()
    try:
        path = Path(shutil.copy(whole.path, folder / "last.ckpt"))
        if rng.random() < 0.2:
            shutil.copy(checksum_path(whole.path), checksum_path(path))
        told = rng.choice(DAMAGES)(path, rng, folder / "ran")
        wrong = None if _is_refused_at_once(path, rng) else _wrong(name, path, folder, whole.end)
        return f"{wrong} ({name}: {told})" if wrong else None
    finally:
        shutil.rmtree(folder)


def _is_refused_at_once(path: Path, rng: random.Random) -> bool:
    """Whether the first thing that the command does refuses it; else the command has to be run."""
    try:
        verify_checkpoint(path, goes_on=True)
    except InputError as error:
        return "\n" not in str(error) and rng.random() > THROUGH_THE_COMMAND
    except Exception:
        return False
    return False


def _wrong(name: str, path: Path, folder: Path, end: Content) -> str | None:
    told = goes_on(name, path, folder / "run")
    if (folder / "ran").exists():
        return "silent: a payload ran"
    errors = [line for line in told.text.splitlines() if line.startswith("maxmargin: error: ")]
    if told.status is None or "Traceback" in told.text:
        return f"traceback: {' | '.join(told.text.splitlines()[-4:])}"
    unsummed = "holds no sum of its content" in told.text
    if unsummed and told.status == 1 and len(errors) == 1:
        # A number that was altered and is taken as it is may overflow later, where the guard ends the run with a line.
        return None
    if told.status != 0:
        if told.status != 2 or len(errors) != 1:
            return f"status {told.status}: {told.text[-200:]}"
        return "refused, and a run directory is left" if (folder / "run").exists() else None
    if unsummed or same(kept(folder / "run"), end):
        return None
    return "silent: status 0, and other weights"
