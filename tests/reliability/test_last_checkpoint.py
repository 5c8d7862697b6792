"""The last checkpoint: by a clock, whole or not there, the one before kept, never of weights that are not finite."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection, atomic
from lightning_maxmargin.callbacks import FiniteGuard, Interrupt
from lightning_maxmargin.callbacks.interrupt import STOP
from lightning_maxmargin.cli import main
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.errors import InputError, NonFiniteError, OutputError
from lightning_maxmargin.run.checkpoints import CheckedCheckpointIO, newest_checkpoint, verify_checkpoint, verify_file
from lightning_maxmargin.run.last_checkpoint import LastCheckpoint
from tests.conftest import config
from tests.reliability.forked import kill, run, started, wait
from tests.reliability.test_resume import assert_same_run, checkpoint

MINIBATCH = ("fit", "--config", config("joint/random"), "--data.batch_size", "8", "--wandb", "disabled")
WORDS_OF_LABELS = (("fine", "good"), ("dull", "bad"))
QUIET = ("--report", "false", "--trainer.enable_progress_bar", "false")


def trained(
    folder: Path, every: float, callbacks: Any = (), model: pl.LightningModule | None = None, **options: Any
) -> pl.Trainer:
    saver = LastCheckpoint(folder / "checkpoints", every)
    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, plugins=[CheckedCheckpointIO()], callbacks=[*callbacks, Interrupt(saver), saver],
        **{"max_steps": 6, **options},
    )  # fmt: skip
    trainer.fit(model or JointSelection(dim=5, inner_steps=1), datamodule=RandomData(n=4, d=5))
    return trainer


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


class Ruin(pl.Callback):
    """What no gradient shows: a statistic, or what Adam remembers, overflows in step 3."""

    def __init__(self, part: str) -> None:
        self.part = part

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            kept = pl_module.statistic if self.part == "statistic" else trainer.optimizers[0].state[
                next(pl_module.parameters())][self.part]  # fmt: skip
            kept[0] = torch.inf


def with_statistic() -> pl.LightningModule:
    model = JointSelection(dim=5, inner_steps=1, gradient="centred", optimizer=torch.optim.Adam, attention_lr=0.1)
    model.register_buffer("statistic", torch.zeros(2))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return model


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("part", ["statistic", "exp_avg_sq"])
def test_a_run_whose_state_is_ruined_ends_and_keeps_the_checkpoint_before(
    part: str, guarded: bool, tmp_path: Path
) -> None:
    watchers = [Ruin(part), *([FiniteGuard()] if guarded else [])]
    with pytest.raises(NonFiniteError, match=rf"{part}.* is not finite by step 3: checkpoints/last.ckpt is of before"):
        trained(tmp_path, 0.0, watchers, with_statistic())
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 2
    verify_checkpoint(tmp_path / "checkpoints" / "last.ckpt", goes_on=True)
    good = tmp_path / "checkpoints" / "last_good.ckpt"
    assert good.exists() == (guarded and part != "statistic")
    if good.exists():
        assert "optimizer_states" not in torch.load(good, weights_only=True)


@pytest.mark.parametrize("ruined", [True, False])
def test_an_interrupted_run_without_checkpoints_saves_nothing_that_is_ruined(ruined: bool, tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            interrupt._asked = STOP if trainer.global_step == 3 else 0

    saver = LastCheckpoint(tmp_path / "checkpoints", 1e9)
    interrupt = Interrupt(saver)
    trainer = pl.Trainer(
        max_epochs=-1, max_steps=6, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
        plugins=[CheckedCheckpointIO()], callbacks=[*([Ruin("exp_avg_sq")] if ruined else []), Stop(), interrupt],
    )  # fmt: skip
    if ruined:
        with pytest.raises(NonFiniteError, match=r"exp_avg_sq .* is not finite by step 3: nothing was saved yet"):
            trainer.fit(with_statistic(), datamodule=RandomData(n=4, d=5))
        assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    else:
        trainer.fit(with_statistic(), datamodule=RandomData(n=4, d=5))
        assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 3


def test_a_run_killed_before_its_summary_makes_its_last_steps_again(tmp_path: Path, maxmargin: Any) -> None:
    """Its last checkpoint has nothing left to train; the one before has, and the run ends in the same weights."""
    whole = maxmargin(*MINIBATCH, *QUIET, "--trainer.max_steps", "12", "--run_dir", "whole")
    part = maxmargin(*MINIBATCH, *QUIET, "--trainer.max_steps", "8", "--run_dir", "killed")
    assert (whole.status, part.status) == (0, 0)
    saved = {name: tmp_path / name / "checkpoints" for name in ("whole", "killed")}
    shutil.copy(saved["killed"] / "last.ckpt", saved["killed"] / "before.ckpt")
    shutil.copy(saved["whole"] / "last.ckpt", saved["killed"] / "last.ckpt")
    (saved["killed"] / "last.ckpt.sha256").unlink()
    words = (*MINIBATCH, *QUIET, "--trainer.max_steps", "12", "--run_dir", "killed", "--ckpt_path", "last")
    goes_on = maxmargin(*words)
    assert goes_on.status == 0, goes_on.err
    assert_same_run(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "killed"))
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["steps"] == 12
    again = maxmargin(*words)
    assert again.status == 2
    assert "at step 12 of 12; raise --trainer.max_steps" in again.error


def test_by_its_clock_and_the_one_before(tmp_path: Path) -> None:
    seen = []

    class See(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            names = [tmp_path / "checkpoints" / name for name in ("last.ckpt", "before.ckpt")]
            seen.append([step_of(name) if name.is_file() else None for name in names])

    trained(tmp_path, 0.0, [See()])
    assert seen == [[None, None], [1, None], [2, 1], [3, 2], [4, 3], [5, 4]]
    assert (step_of(tmp_path / "checkpoints" / "last.ckpt"), step_of(tmp_path / "checkpoints" / "before.ckpt")) == (
        6,
        5,
    )
    for name in ("last.ckpt", "before.ckpt"):
        verify_file(tmp_path / "checkpoints" / name)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]


def test_it_is_not_asked_for_before_its_time(tmp_path: Path) -> None:
    trained(tmp_path, 3600.0)
    assert not (tmp_path / "checkpoints" / "before.ckpt").exists()
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 6


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
#: Bytes after which the disk is full: at once, in the first record, between two, in the directory at the end.
ROOM = (0, 100, 700, 2_500, 4_000)


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Makes the disk full after so many bytes of each file that torch writes; None ends that."""
    room: list[int | None] = [None]
    write = atomic.FileIO.write

    class Small(atomic.FileIO):
        def write(self, data: Any) -> int:
            if room[0] is None:
                return write(self, data)
            left = room[0] - self.tell()
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(self, memoryview(data)[:left])  # a disk takes what it has room for

    monkeypatch.setattr(atomic, "FileIO", Small)

    def full(after: int | None) -> None:
        room[0] = after

    return full


@pytest.mark.parametrize("room", ROOM)
def test_on_a_full_disk_training_goes_on(
    room: int, full_after: Callable[[int | None], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, steps = torch.save, []

    def counting(content: Any, path: Any) -> None:
        steps.append(content["global_step"])
        full_after(room if 2 <= content["global_step"] <= 4 else None)
        save(content, path)

    monkeypatch.setattr(torch, "save", counting)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trained(tmp_path, 0.0)
    assert steps == [1, 2, 3, 4, 5, 6]
    told = [str(w.message) for w in said if "cannot be written" in str(w.message)]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "before.ckpt", "before.ckpt.sha256", "last.ckpt", "last.ckpt.sha256",
    ]  # fmt: skip


def test_a_save_that_fails_halfway_leaves_the_one_before(
    tmp_path: Path, full_after: Callable[[int | None], None]
) -> None:
    writer, path = CheckedCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"state_dict": {"w": torch.ones(3)}, "global_step": 1}, path)

    full_after(300)
    writer.tolerated = []
    writer.save_checkpoint({"state_dict": {"w": torch.zeros(3)}, "global_step": 2}, path)
    assert [error.errno for error in writer.tolerated] == [errno.ENOSPC]
    assert verify_checkpoint(path)["global_step"] == 1
    assert sorted(found.name for found in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]


def test_a_checkpoint_of_another_callback_is_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: Any, path: Any) -> None:
        if content["global_step"] >= 2:
            raise FULL
        save(content, path)

    class Mine(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "mine.ckpt")

    monkeypatch.setattr(torch, "save", full)
    with (
        pytest.raises(OutputError, match=r"mine.ckpt cannot be written"),
        pytest.warns(UserWarning, match=r"last.ckpt"),
    ):
        trained(tmp_path, 0.0, [Mine()])


def test_at_the_end_of_a_run_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, 3600.0, max_steps=3)

    def full(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        OutputError,
        match=r"last.ckpt cannot be written \(No space left on device\) at step 6: checkpoints/last.ckpt is of",
    ):
        trained(tmp_path, 3600.0)
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 3
    verify_file(tmp_path / "checkpoints" / "last.ckpt")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Ruin(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                module.selector.v.data.fill_(torch.nan)

    trained(tmp_path, 0.0, [Ruin()])
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 3


@pytest.mark.parametrize("save_last", ["link", "true"])
def test_last_has_one_writer(save_last: str, maxmargin: Any) -> None:
    best = ("[{class_path: ModelCheckpoint, init_args: {monitor: norm/attention, mode: min, save_top_k: 1, "
            f"every_n_train_steps: 10, save_last: {save_last}, filename: best}}}}]")  # fmt: skip
    words = ("fit", "--config", config("joint/relaxed"), "--model.inner_steps", "10", "--trainer.max_steps", "60")
    with pytest.warns(UserWarning, match=r"ModelCheckpoint\(save_last\) writes newest.ckpt"):
        run = maxmargin(*words, "--trainer.callbacks", best)
    assert run.status == 0, run.err
    last = run.run_dir / "checkpoints" / "last.ckpt"
    assert not last.is_symlink()
    assert step_of(last) == 60
    assert (run.run_dir / "checkpoints" / "newest.ckpt").exists()
    verify_file(last)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_without_a_sum_is_seen_or_changes_nothing(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    generator = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(300, generator=generator), "v": torch.randn(40, 3, generator=generator)}
    torch.save({"state_dict": weights, "global_step": 7}, path)
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    try:
        assert verify_checkpoint(path)["global_step"] == 7
    except InputError:
        return
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], x) for name, x in weights.items())


def test_a_part_that_does_not_match_its_sum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"w": torch.ones(64)}, "global_step": 1}, path)
    with zipfile.ZipFile(path) as parts:
        name = next(x for x in parts.namelist() if x.endswith("data/0"))
    content = path.read_bytes()
    at = content.index(torch.ones(64).numpy().tobytes())
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(InputError, match=f"is damaged in its part '{name}'"):
        verify_file(path)


def test_a_part_with_a_name_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("a\nb", b"content")
    path.write_bytes(path.read_bytes().replace(b"content", b"contend"))
    with pytest.raises(InputError) as found:
        verify_file(path)
    assert "part 'a\\nb'" in str(found.value)
    assert "\n" not in str(found.value)


def test_the_newest_whole_one(tmp_path: Path) -> None:
    trained(tmp_path, 0.0)
    folder = tmp_path / "checkpoints"
    assert newest_checkpoint(tmp_path).name == "last.ckpt"
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:1000])
    assert newest_checkpoint(tmp_path).name == "before.ckpt"
    (folder / "before.ckpt").unlink()
    with pytest.raises(InputError, match=r"ckpt_path: last; .* holds no whole checkpoint: .* does not match"):
        newest_checkpoint(tmp_path)


# --- --ckpt_path last -----------------------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_own_directory(tmp_path: Path, maxmargin: Any) -> None:
    whole = maxmargin(*MINIBATCH, *QUIET, "--trainer.max_steps", "60")
    words = (*MINIBATCH, *QUIET, "--run_dir", "mine")
    part = maxmargin(*words, "--trainer.max_steps", "31")
    assert part.status == 0, part.err
    rows = (tmp_path / "mine" / "metrics.csv").read_text().splitlines()
    goes_on = maxmargin(*words, "--trainer.max_steps", "60", "--ckpt_path", "last")
    assert goes_on.status == 0, goes_on.err
    assert_same_run(checkpoint(whole.run_dir), checkpoint(tmp_path / "mine"))
    assert len((tmp_path / "mine" / "metrics.csv").read_text().splitlines()) > len(rows)
    assert "ckpt_path" not in (tmp_path / "mine" / "config.yaml").read_text()
    again = maxmargin(*words, "--trainer.max_steps", "60", "--ckpt_path", "last")
    assert again.status == 2
    assert "at step 60 of 60" in again.err
    assert (tmp_path / "mine" / "summary.json").is_file()


@pytest.mark.slow
def test_a_run_on_text_goes_on_in_its_own_directory(tmp_path: Path, maxmargin: Any) -> None:
    """Which has left a model, a report and examples there before."""
    rows = [{"text": f"a {word} film {i}", "label": label} for i in range(40) for word, label in WORDS_OF_LABELS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("fit", "--config", config("text/finetune"), "--data.train", "a.jsonl", "--data.cache_dir", "cache", *QUIET,
             "--wandb", "disabled", "--trainer.max_epochs")  # fmt: skip
    assert maxmargin(*words, "2", "--run_dir", "mine").status == 0
    goes_on = maxmargin(*words, "4", "--run_dir", "mine", "--ckpt_path", "last")
    assert goes_on.status == 0, goes_on.err
    assert json.loads((tmp_path / "mine" / "summary.json").read_text())["steps"] == 4 * 3
    assert (tmp_path / "mine" / "model" / "config.json").is_file()
    assert not [path for path in (tmp_path / "mine").iterdir() if path.name.startswith(".")]


def test_a_run_that_is_refused_late_leaves_its_files(tmp_path: Path, maxmargin: Any) -> None:
    """By the module's own setup, which comes after that of the callbacks."""
    words = ("fit", "--config", config("ensemble/random"), "--data.B", "4", *QUIET, "--run_dir", "mine")
    assert maxmargin(*words, "--trainer.max_steps", "4").status == 0
    rows = tmp_path / "mine" / "metrics.csv"
    names = rows.read_text().splitlines()[0].split(",")
    with rows.open("a") as file:
        file.write(",".join("9" if name == "step" else "" for name in names) + "\n")
    before = {name: (tmp_path / "mine" / name).read_bytes() for name in ("metrics.csv", "config.yaml")}
    again = maxmargin(*words, "--ckpt_path", "last", "--trainer.max_steps", "8", "--trainer.precision", "bf16-true")
    assert again.status == 2, again.err
    assert {name: (tmp_path / "mine" / name).read_bytes() for name in before} == before


def test_last_of_what_is_not_there(tmp_path: Path, maxmargin: Any, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = maxmargin(*MINIBATCH, "--run_dir", "none", "--ckpt_path", "last")
    assert outcome.status == 2
    assert "none/checkpoints holds no whole checkpoint" in outcome.err
    assert not (tmp_path / "none").exists()
    assert main(["fit", "--config", config("joint/tight"), "--ckpt_path", "last"]) == 2
    assert "last is of the run in --run_dir" in capfd.readouterr().err


#: Each step waits: of 30 seconds there are some hundred, which the run that is not killed, without it, makes at once.
WAITING = ("--trust-config", "--trainer.callbacks", "[{class_path: tests.reliability.slow.Slow, init_args: {}}]")


@pytest.mark.slow
def test_killed_with_default_settings(tmp_path: Path) -> None:
    """At most 40 seconds of work are lost; the run that goes on ends as one that was not killed."""
    words = (*MINIBATCH, *QUIET, "--trainer.devices", "2", "--trainer.accelerator", "cpu")
    mine = (*words, "--trainer.strategy", "ddp", *WAITING, "--run_dir", "mine")
    last = tmp_path / "mine" / "checkpoints" / "last.ckpt"
    process = started((*mine, "--trainer.max_steps", "1000000"), tmp_path)
    while not last.is_file():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.1)
    time.sleep(random.Random(2).uniform(0, 10))
    kill(process)
    assert time.time() - last.stat().st_mtime <= 40
    end = ("--trainer.max_steps", str(step_of(newest_checkpoint(tmp_path / "mine")) + 50))
    assert wait(started((*mine, *end, "--ckpt_path", "last"), tmp_path)) == 0
    assert run((*words, "--trainer.strategy", "ddp_fork", *end, "--run_dir", "whole"), tmp_path) == 0
    assert_same_run(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "mine"))
