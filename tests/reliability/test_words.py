"""Mutated configs and words, the short form; and each kind that once ended in a traceback, or in silence, by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_maxmargin import cli
from lightning_maxmargin.callbacks.guard import check_options
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.config_text import check_config
from tests.conftest import ROOT
from tests.reliability.scenario import assert_none_failed
from tests.reliability.words import CHEAP, TEXTS, Case, Left, as_config, judge, path_of, run, trial


def judged(
    words: list[str], folder: Path, *names: str, refused: bool = True, config: str = "joint/relaxed", **rest: Any
) -> str | None:
    """What is wrong with what became of these words."""
    return judge(Case(["--config", path_of(config), *as_config(*CHEAP), *words], names, refused, **rest), folder)


@pytest.mark.parametrize(("first", "cases"), [(0, 8), pytest.param(8, 17, marks=pytest.mark.slow)])
def test_drawn_cases(first: int, cases: int) -> None:
    assert_none_failed(trial, cases, seed=11, first=first)


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        ({"strategy": "dpp"}, "trainer.strategy"),
        ({"strategy": "deepspeed"}, "trainer.strategy"),
        ({"strategy": "ModelParallelStrategy"}, "trainer.strategy"),
        ({"accelerator": "cpux"}, "trainer.accelerator"),
        ({"precision": "transformer-engine"}, "trainer.precision"),
        ({"devices": -7}, "trainer.devices"),
        ({"devices": 10**6}, "trainer.devices"),
        ({"num_nodes": 0}, "trainer.num_nodes"),
        ({"val_check_interval": 0}, "trainer.val_check_interval"),
        ({"val_check_interval": 50}, "trainer.val_check_interval"),
        ({"val_check_interval": float("nan")}, "trainer.val_check_interval"),
        ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches"),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches"),
        ({"limit_train_batches": 0.0}, "trainer.limit_train_batches"),
        ({"max_epochs": 0}, "trainer.max_epochs"),
        ({"min_steps": 5, "max_steps": 2}, "trainer.min_steps"),
        ({"max_time": {"sekunds": 3}}, "trainer.max_time"),
        ({"max_steps": 2**64}, "trainer.max_steps"),
        ({"barebones": True}, "trainer.barebones"),
        ({"default_root_dir": "elsewhere"}, "trainer.default_root_dir"),
        ({"profiler": "xla"}, "trainer.profiler"),
        ({"plugins": "BitsandbytesPrecision"}, "trainer.plugins"),
        ({"logger": "CSVLogger"}, "trainer.logger.save_dir"),
        ({"logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}}, "trainer.logger"),
        ({"logger": [{"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}]}, "trainer.logger"),
        ({"callbacks": [{"class_path": "EarlyStopping"}]}, "trainer.callbacks.monitor"),
        ({"callbacks": [{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": -1}}]}, "callbacks"),
        ({"callbacks": "BackboneFinetuning"}, "trainer.callbacks"),
        (None, "trainer"),
        ([], "trainer"),
    ],
)
def test_trainer_word_that_does_not_fit(trainer: Any, name: str, tmp_path: Path) -> None:
    """Whatever Lightning raises of a word, or divides by, or takes and trains nothing."""
    files = {"bad.yaml": yaml.safe_dump({"trainer": trainer}).encode()}
    assert judged(["--config", "bad.yaml"], tmp_path, name, files=files) is None


@pytest.mark.parametrize("callback", ["EarlyStopping", pytest.param("ModelCheckpoint", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ("nope", "docs list"),
        ("direction_gap/stricct", "did you mean direction_gap/strict?"),
        ("val/loss", "does not log"),
        ("val/accuracy", "does not log"),
        ("test/accuracy", "does not log"),
        ("ensemble/settled", "does not log"),
        ("svm/limit", "does not log"),
    ],
)
def test_callback_on_a_number_that_is_not_logged(callback: str, monitor: str, said: str, tmp_path: Path) -> None:
    words = [f"--trainer.callbacks=[{{class_path: {callback}, init_args: {{monitor: {monitor}}}}}]"]
    assert judged(words, tmp_path, said) is None


@pytest.mark.parametrize("monitor", ["norm/attention", "train/loss", "step"])
def test_callback_on_a_number_that_is_logged(monitor: str, tmp_path: Path) -> None:
    words = [f"--trainer.callbacks=[{{class_path: EarlyStopping, init_args: {{monitor: {monitor}}}}}]"]
    assert judged(words, tmp_path, refused=False) is None


def test_a_callback_by_itself_is_one_of_a_list(tmp_path: Path) -> None:
    assert judged(["--trainer.callbacks=LearningRateMonitor"], tmp_path, refused=False, steps=2) is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--name", "../../evil"], "name"),
        (["--name", "/proc/evil"], "name"),
        (["--name", "a" * 300], "name"),
        (["--name", "\u00fc" * 150], "name"),
        (["--name", "a\x00b"], "name"),
        (["--run_dir", ""], "run_dir"),
        (["--run_dir", "r" * 300], "run_dir"),
        (["--run_dir", "a\x00b"], "run_dir"),
        (["--run_dir", "texts.csv/x"], "run_dir"),
        (["--ckpt_path", ""], "ckpt_path"),
        (["--ckpt_path", "a" * 300], "ckpt_path"),
        (["--seed_everything", "-1"], "seed_everything"),
        (["--seed_everything", str(2**64)], "seed_everything"),
        (["--timeout", "1e300"], "timeout"),
        (["--config", "x" * 300], "config"),
        (["--monitor", "[]"], "monitor"),
        (["--tokens.examples", "-1"], "tokens.examples"),
        (["--monitor.per_decade", str(2**64)], "monitor.per_decade"),
        (["--model.head_lr", "1e300"], "model.head_lr"),
        (["--monitor.per_decade", "null"], "monitor.per_decade"),
        (["--tokens.examples", "null"], "tokens.examples"),
        (["--monitor.data", "[1]"], "monitor.data"),
        (["--monitor.split", "nope"], "monitor.split"),
        (["--data", "TextData"], "data"),
        (["--model.optimizer", "LBFGS"], "model.optimizer"),
        (["--model.optimizer", "SGD", "--model.optimizer.momentum", "-1"], "model.optimizer"),
        (["--model.attention_lr", ".inf"], "model.attention_lr"),
    ],
)
def test_word_that_names_nothing(words: list[str], name: str, tmp_path: Path) -> None:
    run_dir = None if words[0] in ("--name", "--run_dir") else "run"
    assert judged(words, tmp_path, name, files={"texts.csv": TEXTS.encode()}, run_dir=run_dir) is None


@pytest.mark.parametrize(
    ("config", "key", "said"),
    [
        ("joint/random", "model.optimizer", "leave it out for NormalizedGD"),
        ("joint/random", "model.loss", "leave it out for 'logistic'"),
        ("joint/random", "data.n", "leave it out for 10"),
        ("ensemble/random", "model.update", "leave it out for "),
        ("text/finetune", "model.optimizer", "leave it out for AdamW"),
        ("text/finetune", "model.token_scale", "leave it out for 8.0"),
        ("text/finetune", "data.batch_size", "leave it out for 32"),
    ],
)
def test_null_of_what_takes_none(config: str, key: str, said: str, tmp_path: Path) -> None:
    told = f"{key}: null is no value of it; {said}"
    assert judged([f"--{key}", "null"], tmp_path, told, config=config, files={"texts.csv": TEXTS.encode()}) is None


@pytest.mark.parametrize("seed", [-1, *(pytest.param(x, marks=pytest.mark.slow) for x in (2**32, 10**18))])
@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("joint/random", "data.seed"),
        ("joint/random", "seed_everything"),
        ("ensemble/random", "data.seed"),
        ("ensemble/random", "model.seed"),
        ("text/finetune", "data.seed"),
        ("text/planted", "data.seed"),
    ],
)
def test_seed_that_not_every_generator_takes(config: str, key: str, seed: int, tmp_path: Path) -> None:
    files = {"texts.csv": TEXTS.encode()}
    assert judged([f"--{key}", str(seed)], tmp_path, f"{key}: {seed}; expected", config=config, files=files) is None


def test_null_of_what_takes_it(tmp_path: Path) -> None:
    words = ["--monitor.every_n_epochs", "null", "--data.batch_size", "null"]
    assert judged(words, tmp_path, refused=False, config="joint/random", steps=2) is None


@pytest.mark.parametrize("config", ["joint/relaxed", "ensemble/random"])
def test_rate_that_the_dtype_does_not_hold(config: str, tmp_path: Path) -> None:
    words = ["--model.attention_lr", "1e300", "--trainer.precision", "32-true"]
    assert judged(words, tmp_path, "model.attention_lr", config=config) is None


def test_options_that_the_dtype_does_not_hold() -> None:
    w = [torch.zeros(1, requires_grad=True)]
    check_options(torch.optim.Adam(w, eps=1e-300))
    for options in ({"lr": float("nan")}, {"lr": float("inf")}, {"lr": 1.0, "momentum": 1e39}):
        with pytest.raises(InputError, match=f"model.optimizer.{list(options)[-1]}"):
            check_options(torch.optim.SGD(w, **options))
    check_options(torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=1e150))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: \xfcml\xe4ut\n", "UTF-8"),
        (b"\xff\xfename: x\n", "UTF-8"),
        (b"name: x\x00\n", "no YAML"),
        (b"trainer:\n\tmax_steps: 2\n", "no YAML"),
        (b"- 1\n", "no mapping"),
        (b"name: x\n---\nname: y\n", "no mapping"),
        (b"", "no mapping"),
        (b"name: x\nname: x\n", "name is there twice (line 2)"),
        (b"model: {rank: 2, rank: 3}\n", "model.rank is there twice"),
        (b"trainer: {max_steps: 2}\ntrainer.max_steps: 3\n", "trainer.max_steps is there twice"),
        (b"x: " + b"[" * 3000 + b"\n", "nested too deeply"),
    ],
)
def test_text_that_is_no_config(content: bytes, said: str, tmp_path: Path) -> None:
    assert judged(["--config", "bad.yaml"], tmp_path, said, files={"bad.yaml": content}) is None


@pytest.mark.parametrize("content", ["\ufeffname: x\n", "name: x\r\n", "---\nname: x\n", "a: [{b: 1}, {b: 2}]\n"])
def test_text_that_is_a_config(content: str, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_bytes(content.encode())
    check_config(str(tmp_path / "good.yaml"))


def test_nothing_is_left_of_the_directories_above_a_refused_run(tmp_path: Path) -> None:
    words = ["--run_dir", "a/b/c", "--trainer.accumulate_grad_batches", "2"]
    assert judged(words, tmp_path, "accumulate_grad_batches", run_dir=None) is None
    assert list(tmp_path.iterdir()) == []


def test_the_words_of_a_process_are_its_own_again(tmp_path: Path) -> None:
    sys_argv = list(sys.argv)
    left = run(["fit", "--config", path_of("joint/relaxed"), "--nope"], tmp_path)
    assert (left.status, left.new, sys.argv) == (2, [], sys_argv)
    assert cli.CALL_VARIABLE not in os.environ


def test_a_traceback_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself: a fault, a file outside, a word that is not done."""
    case = Case(["--config", path_of("joint/tight"), *CHEAP], ("x",), said=("trainer.max_steps", 3))
    assert (judge(case, tmp_path) or "").startswith("silent: trainer.max_steps is 2, not 3")
    monkeypatch.setattr("tests.reliability.words.run", lambda *_: Left(None, "ValueError: x\n", []))
    assert (judge(case, tmp_path) or "").startswith("traceback: ValueError")
    monkeypatch.setattr("tests.reliability.words.run", lambda *_: Left(2, "maxmargin: error: x\n", ["runs"]))
    assert (judge(case, tmp_path) or "").startswith("left behind")
    monkeypatch.setattr("tests.reliability.words.run", lambda *_: Left(0, "", ["../evil"]))
    assert (judge(case, tmp_path) or "").startswith("silent: files outside")


SCRIPT = """
import sys
sys.argv = sys.argv[:1]
from lightning_maxmargin.cli import main
quiet = {quiet!r}
for name, words in (("first", ["--config", {ddp!r}]), ("second", []), ("third", ["--config", {ddp!r}])):
    assert main(["fit", "--config", {config!r}, *words, *quiet, "--run_dir", name, "--name", name]) == 0
print("end")
"""


@pytest.mark.parametrize("words", [["deterministic=true"], ["deterministic=warn"], ["benchmark=true"]])
def test_words_of_one_run_are_not_of_the_next(words: list[str], tmp_path: Path) -> None:
    assert judged([f"--trainer.{word}" for word in words], tmp_path, refused=False) is None


@pytest.mark.slow
def test_runs_of_a_script_each_write_where_they_are_told(tmp_path: Path) -> None:
    """Also where some have two processes, each of which is the whole script again."""
    script = SCRIPT.format(quiet=CHEAP, ddp=path_of("trainer/ddp_cpu"), config=path_of("joint/relaxed"))
    (tmp_path / "sweep.py").write_text(script)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "sweep.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines().count("end") == 1
    found = {path.parent.name: yaml.safe_load(path.read_text())["name"] for path in tmp_path.glob("*/summary.json")}
    assert found == {"first": "first", "second": "second", "third": "third"}
