"""A run that was stopped and resumed is, bit by bit, the run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_maxmargin import JointSelection
from lightning_maxmargin.callbacks import Interrupt, MarginMonitor
from lightning_maxmargin.callbacks.interrupt import STOP
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.run.last_checkpoint import SAVE_EVERY, LastCheckpoint
from tests.conftest import QUIET, Outcome, config, fit_once
from tests.reliability.forked import begin, kill, started, told, wait

MINIBATCH = (
    "fit", "--config", config("joint/random"), "--data.batch_size", "3", "--model.optimizer", "NormalizedGD",
    "--model.attention_lr", "0.1", "--model.head_lr", "0.1",
)  # fmt: skip
FULL = ("fit", "--config", config("joint/random"))
ADAM = (
    *MINIBATCH[:5],
    "--model.optimizer",
    "torch.optim.Adam",
    "--model.gradient",
    "centred",
    "--model.optimizer.lr",
    "0.01",
)


#: Steps of a run that is not stopped.
END = "60"


def checkpoint(run_dir: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if "seconds" not in str(key):
                assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where


def assert_same_run(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["global_step"] == b["global_step"]
    assert_same(a["state_dict"], b["state_dict"], "weights")
    assert_same(a["optimizer_states"], b["optimizer_states"], "optimizer")
    monitor = next(k for k in a["callbacks"] if "MarginMonitor" in k)
    # The look at the step where the first part ended is the only one that the whole run does not have.
    known = {row["step"] for row in a["callbacks"][monitor]["history"]}
    history = [row for row in b["callbacks"][monitor]["history"] if row["step"] in known]
    assert_same(a["callbacks"][monitor]["history"], history, "history")


@pytest.fixture(
    scope="module",
    params=[MINIBATCH, pytest.param(ADAM, marks=pytest.mark.slow), FULL],
    ids=["minibatch", "adam", "full"],
)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Outcome]:
    """The words of a run, and the run that was not stopped."""
    words = request.param
    return words, fit_once(tmp_path_factory.mktemp("whole"), *words[1:], "--trainer.max_steps", END)


# 4 batches an epoch: in the middle of one, at its last batch, and in the middle again.
@pytest.mark.parametrize("stop", [33, *(pytest.param(x, marks=pytest.mark.slow) for x in (32, 36)), 2])
def test_resumed_run_is_the_whole_run(whole: tuple[tuple[str, ...], Outcome], stop: int, maxmargin: Any) -> None:
    words, unbroken = whole
    part = maxmargin(*words, "--trainer.max_steps", str(stop))
    assert part.status == 0, part.err
    resumed = maxmargin(
        *words, "--trainer.max_steps", END, "--ckpt_path", str(part.run_dir / "checkpoints" / "last.ckpt")
    )
    assert resumed.status == 0, resumed.err
    assert_same_run(checkpoint(unbroken.run_dir), checkpoint(resumed.run_dir))


# Saved after the last batch of an epoch, Lightning's own count of epochs was one behind from then on.
@pytest.mark.parametrize(
    "stops", [(32, 36, 40), *(pytest.param(x, marks=pytest.mark.slow) for x in ((33, 36, 38), (32, 36), (32, 37)))]
)
def test_a_run_that_goes_on_again_is_the_whole_run(
    whole: tuple[tuple[str, ...], Outcome], stops: tuple[int, ...], maxmargin: Any
) -> None:
    words, unbroken = whole
    last: tuple[str, ...] = ()
    for stop in (*stops, int(END)):
        part = maxmargin(*words, "--trainer.max_steps", str(stop), *last)
        assert part.status == 0, part.err
        last = ("--ckpt_path", str(part.run_dir / "checkpoints" / "last.ckpt"))
    assert_same_run(checkpoint(unbroken.run_dir), checkpoint(part.run_dir))


@pytest.mark.parametrize("monitored", [True, False])
def test_the_epochs_of_a_trainer_of_ones_own_are_counted_on(monitored: bool, tmp_path: Path) -> None:
    data = RandomData(n=10, T=4, d=3, batch_size=5)
    found: dict[int, dict[str, int]] = {}
    for steps in (4, 8, 12):
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [saver, *([MarginMonitor()] if monitored else [LastCheckpoint(tmp_path / "own")])]
        trainer = pl.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks,
        )  # fmt: skip
        last = tmp_path / f"step={steps - 4}.ckpt"
        trainer.fit(JointSelection(dim=3), datamodule=data, ckpt_path=str(last) if found else None)
        for path in tmp_path.glob("step=*.ckpt"):
            content = torch.load(path, weights_only=True)
            found[content["global_step"]] = content["loops"]["fit_loop"]["epoch_progress"]["total"]
    assert {step: count["started"] for step, count in found.items()} == {step: (step + 1) // 2 for step in range(1, 13)}
    assert all(count["ready"] == count["started"] == count["processed"] + 1 for count in found.values())


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_with_workers_goes_on_as_one_without(workers: int, maxmargin: Any) -> None:
    """In the middle of an epoch, whoever made the batches before and after."""
    whole = maxmargin(*MINIBATCH, "--trainer.max_steps", "40")
    part = maxmargin(*MINIBATCH, "--trainer.max_steps", "21", "--data.num_workers", str(workers))
    last = str(part.run_dir / "checkpoints" / "last.ckpt")
    resumed = maxmargin(*MINIBATCH, "--trainer.max_steps", "40", "--data.num_workers", "1", "--ckpt_path", last)
    assert resumed.status == 0, resumed.err
    assert_same_run(checkpoint(whole.run_dir), checkpoint(resumed.run_dir))


@pytest.fixture(scope="module")
def sixhundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is not killed; that workers change nothing is the test above."""
    return fit_once(tmp_path_factory.mktemp("sixhundred"), *MINIBATCH[1:], "--trainer.max_steps", "600").run_dir


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kill_and_resume(seed: int, workers: str, sixhundred: Path, tmp_path: Path, maxmargin: Any) -> None:
    """kill -9 at a random moment of a run that saves at every step, then resume from the newest whole checkpoint."""
    saver = (
        "{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {every_n_train_steps: 1, save_top_k: -1}}"
    )
    words = (*MINIBATCH, *QUIET, "--trainer.callbacks", f"[{saver}]", "--trainer.max_steps", "600",
             "--data.num_workers", workers)  # fmt: skip
    killed = tmp_path / "killed"
    process = begin((*words, "--run_dir", str(killed)), tmp_path, every=SAVE_EVERY)
    # Counted in checkpoints, not in seconds: a fast machine ends the whole run in one.
    enough = random.Random(seed).randint(1, 200)
    while len(list(killed.rglob("*step=*.ckpt"))) < enough:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    kill(process)
    saved = sorted(killed.rglob("*step=*.ckpt"), key=lambda p: int(p.stem.split("step=")[1].split("-")[0]))
    resumed = maxmargin(*words, "--ckpt_path", str(saved[-1]))
    assert resumed.status == 0, resumed.err
    assert_same_run(checkpoint(sixhundred), checkpoint(resumed.run_dir))


def test_nothing_left_to_train_is_said(maxmargin: Any) -> None:
    part = maxmargin(*MINIBATCH, "--trainer.max_steps", "20")
    last = str(part.run_dir / "checkpoints" / "last.ckpt")
    again = maxmargin(*MINIBATCH, "--trainer.max_steps", "20", "--ckpt_path", last)
    assert again.status == 2
    assert "at step 20" in again.err
    assert "--trainer.max_steps" in again.err
    assert not again.run_dir.exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five epochs of four batches; rows as of a run that was killed after its checkpoint."""
    run = fit_once(tmp_path_factory.mktemp("twenty"), *MINIBATCH[1:], "--trainer.max_steps", "20").run_dir
    rows = run / "metrics.csv"
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[-1].replace("20,", "24,", 1) + "\n")
    return run


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--monitor.split", "nope"), "monitor.split: no 'nope' sequences here"),
        (("--trainer.accumulate_grad_batches", "2"), "trainer.accumulate_grad_batches: "),
        (("--trainer.max_time", "-1:0:0:0"), "trainer.max_time: "),
        (("--trainer.max_time", "1:2"), "trainer.max_time"),
        (("--trainer.max_time", "{hour: 1}"), "trainer.max_time: "),
        (("--trainer.max_epochs", "5"), "is at epoch 5 of 5; raise --trainer.max_epochs to go on"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("own", [True, False], ids=["own directory", "new one"])
def test_what_is_refused_before_a_step_changes_no_file(
    more: tuple[str, str], said: str, own: bool, twenty: Path, tmp_path: Path, maxmargin: Any
) -> None:
    part = Path(shutil.copytree(twenty, tmp_path / "part"))
    before = contents(part)
    where = ("--run_dir", str(part), "--ckpt_path", "last") if own else (
        "--ckpt_path", str(part / "checkpoints" / "last.ckpt"))  # fmt: skip
    again = maxmargin(*MINIBATCH, "--trainer.max_steps", "40", *where, *more)
    assert again.status == 2, again.err
    assert said in again.error
    assert contents(part) == before
    assert own or not again.run_dir.exists()


@pytest.mark.parametrize(("steps", "status"), [(1, 0), (50, 1)], ids=["at its last step", "before"])
def test_a_signal_at_the_last_step_comes_too_late(
    steps: int, status: int, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(self: Interrupt, *_: Any) -> None:
        self._asked = STOP

    monkeypatch.setattr(Interrupt, "on_train_start", asked)
    run = maxmargin(*FULL, "--trainer.max_steps", str(steps))
    assert run.status == status, run.err
    assert str(run.summary["message"]).startswith("Interrupted at step 1 of 50.") == (status == 1)


TWO = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_how_to_go_on(number: signal.Signals, extra: tuple[str, ...], tmp_path: Path) -> None:
    words = (*FULL, *QUIET, *extra, "--trainer.max_steps", "10000000", "--report", "true", "--run_dir", "run")
    # Of two Lightning starts the second by the command line.
    process = started(words, tmp_path) if extra else begin(words, tmp_path, every=SAVE_EVERY)
    while not (tmp_path / "run" / "metrics.csv").is_file():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.1)
    # To the whole group, as a terminal does.
    os.killpg(process, number)
    assert wait(process, 60) == 1
    err = (tmp_path / "errors.txt").read_text() if extra else told(tmp_path)
    assert "Traceback" not in err
    assert "--ckpt_path" in err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) > 2
    message = json.loads((tmp_path / "run" / "summary.json").read_text())["message"]
    assert message.startswith("Interrupted at step ")
    assert "of 10,000,000." in message


# --- another word than the checkpoint's ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_once(tmp_path_factory.mktemp("part"), "--config", config("joint/relaxed"), "--trainer.max_steps", "40",
                    "--model.attention_lr", "0.2").run_dir  # fmt: skip


def goes_on(maxmargin: Any, part: Path, *words: str, named: str = "") -> Outcome:
    return maxmargin("fit", "--config", named or str(part / "config.yaml"), "--trainer.max_steps", "80",
                     "--ckpt_path", str(part / "checkpoints" / "last.ckpt"), *words)  # fmt: skip


def test_the_same_words_go_on(part: Path, maxmargin: Any) -> None:
    for words in ((), ("--model.attention_lr", "0.2"), ("--model.loss", "logistic"), ("--trainer.max_steps", "60")):
        outcome = goes_on(maxmargin, part, *words)
        assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.attention_lr", "0.001"], "model.attention_lr 0.2, not 0.001"),
        (["--model.loss=exponential"], "model.loss logistic, not exponential"),
        (["--model.inner_steps", "7"], "model.inner_steps 1000, not 7"),
        (["--model.attention_init", "normal"], "model.attention_init"),
        (["--model.parametrization", "p"], "model.parametrization W, not p"),
        (["--model.optimizer", "torch.optim.Adam"], "model.optimizer lightning_maxmargin.optim"),
        (
            ["--model.optimizer", "lightning_maxmargin.optim.AcceleratedMargin"],
            "model.optimizer lightning_maxmargin.optim",
        ),
        (["--model.optimizer", "lightning_maxmargin.optim.SignDescent"], "model.optimizer lightning_maxmargin.optim"),
    ],
)
def test_another_word_is_refused(part: Path, words: list[str], said: str, maxmargin: Any) -> None:
    outcome = goes_on(maxmargin, part, *words)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert "ckpt_path: " in outcome.error
    assert said in outcome.error
    assert not outcome.run_dir.exists()


def test_a_config_that_says_otherwise_is_refused(part: Path, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "other.yaml").write_text("model: {class_path: JointSelection, init_args: {attention_lr: 0.3}}\n")
    outcome = goes_on(maxmargin, part, "--config", "other.yaml")
    assert outcome.status == 2
    assert "model.attention_lr 0.2, not 0.3" in outcome.error
    assert "config.yaml" in outcome.error


SGD = (*FULL, "--model.optimizer", "torch.optim.SGD", "--model.gradient", "centred", "--model.optimizer.lr", "0.1")
SCHEDULED = ("--model.optimizer.init_args.momentum", "0.9", "--data.batch_size", "4", "--seed_everything", "3")


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an optimizer, batches and a seed that the checkpoint's model does not keep itself."""
    return fit_once(tmp_path_factory.mktemp("scheduled"), *SGD[1:], *SCHEDULED, "--trainer.max_steps", "20").run_dir


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.optimizer.lr", "0.5"], "model.optimizer.lr 0.1, not 0.5"),
        (["--model.optimizer.weight_decay", "0.5"], "model.optimizer.weight_decay"),
        (["--model.optimizer.momentum", "0.5"], "model.optimizer.momentum 0.9, not 0.5"),
        (["--data.batch_size", "5"], "data.batch_size 4, not 5"),
        (["--data.batch_size", "null"], "data.batch_size 4, not None"),
        (["--seed_everything", "4"], "seed_everything 3, not 4"),
        (["--config", "model: {init_args: {optimizer: {init_args: {nesterov: true}}}}"], "model.optimizer.nesterov"),
        (["--model", "{class_path: JointSelection, init_args: {head_lr: 0.7}}"], "model.head_lr"),
    ],
)
def test_each_word_of_the_checkpoint_is_refused(scheduled: Path, words: list[str], said: str, maxmargin: Any) -> None:
    outcome = goes_on(maxmargin, scheduled, *words)
    assert outcome.status == 2, outcome.err
    assert said in outcome.error
    assert not outcome.run_dir.exists()


def test_what_nobody_says_is_the_checkpoints(scheduled: Path, maxmargin: Any) -> None:
    outcome = goes_on(maxmargin, scheduled, *SGD[3:], *SCHEDULED[:4], named=config("joint/random"))
    assert outcome.status == 0, outcome.err
    assert yaml.safe_load((outcome.run_dir / "config.yaml").read_text())["seed_everything"] == 3
    for left_out in ("--data.batch_size", "--model.optimizer.init_args.momentum"):
        words = [*SGD[3:], *SCHEDULED[:4]]
        at = words.index(left_out)
        outcome = goes_on(maxmargin, scheduled, *words[:at], *words[at + 2 :], named=config("joint/random"))
        assert outcome.status == 2
        assert left_out.removeprefix("--").replace(".init_args", "") in outcome.error


def test_other_data_are_told(scheduled: Path, maxmargin: Any) -> None:
    with pytest.warns(UserWarning, match="goes on with other data: data.seed 77"):
        assert goes_on(maxmargin, scheduled, "--data.seed", "77").status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "2"], "at epoch 6 of 2; raise --trainer.max_epochs"),
        (["--trainer.max_steps", "7"], "at step 20 of 7; raise --trainer.max_steps"),
        (["--trainer.max_steps", "0"], "trainer.max_steps: 0 trains nothing"),
        (["--trainer.max_time", "00:00:00:00"], "trainer.max_time: 00:00:00:00 trains nothing"),
        (["--trainer.max_time", "{hours: 0}"], "trains nothing"),
        (["--trainer.max_time", "{seconds: -3}"], "trains nothing"),
        (["--trainer.max_time", "{minutes: 1, hours: -1}"], "trains nothing"),
        (["--trainer.max_time", "-1:0:0:0"], "trainer.max_time: "),
        (["--trainer.max_time", "{hour: 1}"], "trainer.max_time: "),
    ],
)
def test_a_run_that_would_train_nothing_is_refused(
    scheduled: Path, words: list[str], said: str, maxmargin: Any
) -> None:
    outcome = goes_on(maxmargin, scheduled, *words)
    assert outcome.status == 2, outcome.err
    assert said in outcome.error
    assert not outcome.run_dir.exists()


def test_a_run_that_has_trained_nothing_says_so_and_changes_nothing(
    scheduled: Path, tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_over(self: Interrupt, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the run before its first step, as a timer does that a checkpoint says is over."""
        trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    monkeypatch.setattr(Interrupt, "on_train_start", is_over)
    run = Path(shutil.copytree(scheduled, tmp_path / "run"))
    before = contents(run)
    words = ("--config", str(run / "config.yaml"), "--trainer.max_steps", "80", "--run_dir", str(run))
    outcome = maxmargin("fit", *words, "--ckpt_path", "last")
    assert outcome.status == 2
    assert "nothing was trained" in outcome.error
    assert contents(run) == before


def test_another_option_of_the_optimizer_is_refused(maxmargin: Any, tmp_path: Path) -> None:
    words = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.momentum")
    first = maxmargin(*FULL, *words, "0.9", "--trainer.max_steps", "20", "--run_dir", "first")
    assert first.status == 0, first.err
    last = ("--trainer.max_steps", "40", "--ckpt_path", str(tmp_path / "first" / "checkpoints" / "last.ckpt"))
    outcome = maxmargin(*FULL, *words, "0.5", *last)
    assert outcome.status == 2
    assert "model.optimizer.momentum 0.9, not 0.5" in outcome.error
    assert maxmargin(*FULL, *words, "0.9", *last).status == 0
