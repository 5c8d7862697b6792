"""validate, test, predict, report and the helps, as a user types them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Outcome, config, fit_once


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run on a user's own arrays, with a test file."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    data, test = (str(folder / name) for name in ("data.npz", "test.npz"))
    for path in (data, test):
        np.savez(path, keys=rng.normal(size=(6, 4, 5)), labels=np.array([1, -1, 1, -1, 1, -1]))
    paths = ("--data.path", data, "--data.val_path", test, "--data.test_path", test)
    return fit_once(folder, "--config", config("tensor"), *paths, "--trainer.max_steps", "40", "--report", "true")


def again(trained: Outcome) -> tuple[str, ...]:
    return (
        "--config",
        str(trained.run_dir / "config.yaml"),
        "--ckpt_path",
        str(trained.run_dir / "checkpoints" / "last.ckpt"),
    )


def test_test_repeats_the_accuracy_of_the_run(trained: Outcome, maxmargin: Any) -> None:
    outcome = maxmargin("test", *again(trained))
    assert outcome.status == 0, outcome.err
    printed = next(line for line in outcome.out.splitlines() if "test/accuracy" in line)
    assert float(printed.split("│")[2]) == pytest.approx(trained.summary["test/accuracy"], abs=1e-7)


def test_validate_prints_a_table(trained: Outcome, maxmargin: Any) -> None:
    outcome = maxmargin("validate", *again(trained))
    assert outcome.status == 0, outcome.err
    assert "val/accuracy" in outcome.out


def test_predict_writes_a_line_each_and_never_over_a_file(trained: Outcome, tmp_path: Path, maxmargin: Any) -> None:
    outcome = maxmargin("predict", *again(trained), "--output", "out.jsonl")
    assert outcome.status == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(6))
    assert all(len(row["attention"]) == 4 and sum(row["attention"]) == pytest.approx(1) for row in rows)
    before = (tmp_path / "out.jsonl").read_bytes()
    refused = maxmargin("predict", *again(trained), "--output", "out.jsonl")
    assert refused.status == 2
    assert "never overwritten" in refused.error
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_report_is_written_again_from_the_files(trained: Outcome, maxmargin: Any) -> None:
    page = trained.run_dir / "report.html"
    first = page.read_bytes()
    page.unlink()
    outcome = maxmargin("report", str(trained.run_dir))
    assert outcome.status == 0, outcome.err
    assert outcome.out.strip() == str(page)
    assert page.read_bytes() == first


def test_the_saved_config_runs_the_same_again(trained: Outcome, maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", str(trained.run_dir / "config.yaml"))
    assert outcome.status == 0, outcome.err
    same = {k: v for k, v in outcome.summary.items() if "seconds" not in k}
    assert same == {k: v for k, v in trained.summary.items() if "seconds" not in k}


def test_print_config_shows_every_key(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/relaxed"), "--print_config", plain=False)
    assert outcome.status == 0
    for key in (
        "parametrization: W",
        "max_steps: 12000",
        "per_decade:",
        "class_path: lightning_maxmargin.data.PaperData",
    ):
        assert key in outcome.out, key


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["report", "--help"]])
def test_help(words: list[str], maxmargin: Any) -> None:
    outcome = maxmargin(*words, plain=False)
    assert outcome.status == 0
    assert "usage: maxmargin" in outcome.out


def test_trusted_classes_of_the_user(tmp_path: Path, maxmargin: Any) -> None:
    """As docs/python.md says; each command of a process as if it were alone, whatever the one before it was."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lightning_maxmargin.core import Sequences\n"
        "from lightning_maxmargin.data import SequenceData\n"
        "class Mine(SequenceData):\n"
        "    def load(self):\n"
        "        g = torch.Generator().manual_seed(0)\n"
        "        ragged = [torch.randn(t, 16, generator=g) for t in (3, 5, 4, 6)]\n"
        "        return {'train': Sequences.pad(ragged, labels=torch.tensor([1.0, -1.0, 1.0, -1.0]))}\n"
    )
    with (tmp_path / "mine.py").open("a") as file:
        file.write(
            "from lightning_maxmargin import JointSelection\n"
            "class Sub(JointSelection):\n"
            "    def __init__(self, dim: int = 3, num_classes: int = 7, lr: float = 0.1):\n"
            "        super().__init__(dim, num_classes=num_classes, gradient='exact', attention_lr=lr)\n"
        )
    # The data's dimension takes the place of the class's own default; nobody gave that.
    words = ["fit", "--data", "mine.Mine", "--model", "mine.Sub", "--trainer.max_steps", "50"]
    quiet = ["--wandb", "disabled", "--report", "false", "--run_dir", "r"]
    call = [sys.executable, "-m", "lightning_maxmargin", *words, *quiet]
    alone = subprocess.run([*call, "--trust-config"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert alone.returncode == 0, alone.stderr
    before = list(sys.path)
    for trusted in (False, True, False):
        outcome = maxmargin(*words, *(["--trust-config"] if trusted else []))
        assert outcome.status == (0 if trusted else 2), outcome.err
        assert trusted or "--trust-config" in outcome.error
        assert sys.path == before


def test_limits_as_near_are_named_together(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/relaxed"), "--trainer.max_steps", "300")
    assert outcome.status == 0, outcome.err
    assert "relaxed = rate-coupled" in outcome.out


def test_fast_dev_run_leaves_no_report(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("joint/tight"), "--trainer.fast_dev_run", "true")
    assert outcome.status == 0, outcome.err


def test_python_m_is_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What -m runs, in this process: it is started as one in test_trusted_classes_of_the_user."""
    words = ["fit", "--config", config("joint/tight"), "--trainer.max_steps", "20", "--wandb", "disabled"]
    monkeypatch.chdir(tmp_path)
    for variable in ("MAXMARGIN_RUN_DIR", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", ["maxmargin", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lightning_maxmargin", run_name="__main__", alter_sys=False)
    assert ended.value.code == 0
    page = Path(capfd.readouterr().out.strip().splitlines()[-1].removeprefix("report "))
    assert page.is_file()
    assert page.parent.parent == tmp_path / "runs"
    assert page.parent.name.startswith("joint-tight-")


def test_a_monitor_of_the_users_own_stands_in_for_ours(maxmargin: Any, tmp_path: Path) -> None:
    own = ("--trainer.callbacks", "lightning_maxmargin.callbacks.MarginMonitor", "--trainer.callbacks.per_decade", "1")
    outcome = maxmargin("fit", "--config", config("joint/tight"), "--trainer.max_steps", "100", *own)
    assert outcome.status == 0, outcome.err
    rows = (outcome.run_dir / "metrics.csv").read_text().splitlines()
    at = rows[0].split(",").index("margin/attention")
    assert sum(row.split(",")[at] != "" for row in rows[1:]) == 3  # steps 1, 10 and 100


@pytest.mark.parametrize("command", ["fit", "test", "reproduce"])
def test_an_interrupt_while_it_is_imported_is_one_line(command: str) -> None:
    """Lightning, half of which is there then, is not asked for more."""
    code = (
        "import sys, lightning_maxmargin.cli as cli\n"
        "def stopped(*_): raise KeyboardInterrupt\n"
        "cli._run = stopped\n"
        "status = cli.main(sys.argv[1:])\n"
        "assert not {'pytorch_lightning', 'torch'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("maxmargin: error: interrupted")
    assert done.stderr.count("\n") == 1
