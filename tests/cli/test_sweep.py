"""A W&B sweep of method grid, run here."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_maxmargin.errors import InputError
from tests.conftest import ROOT

SCRIPT = str(ROOT / "scripts" / "sweep.py")


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.fixture
def sweep_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The script in this process, which has imported Lightning; by ``sweep`` it is a process of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(SCRIPT, run_name="__main__")
        return subprocess.CompletedProcess(words, int(str(ended.value.code)), *capfd.readouterr())

    return call


def small(folder: Path, **changed: object) -> str:
    """The shipped sweep with two runs of a few steps, in a file."""
    found = yaml.safe_load((ROOT / "configs" / "sweep" / "rates.yaml").read_text())
    found["command"] = [w for w in found["command"] if "max_steps" not in w] + ["--trainer.max_steps=5"]
    found["parameters"] = {"model.head_lr": {"values": [0.1, 0.4]}, "model.gradient": {"value": "exact"}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(found | changed))
    return "sweep.yaml"


def plain(folder: Path, **changed: Any) -> str:
    """A sweep of a program that writes a summary at once, but of a=2 only when it finds no file wait, in a file."""
    (folder / "mine.py").write_text(
        "import pathlib, sys, time\n"
        "words = dict(word[2:].split('=', 1) for word in sys.argv[1:])\n"
        "pathlib.Path(words['run_dir']).mkdir()\n"
        "pathlib.Path(words['run_dir'], 'summary.json').write_text('{}')\n"
        "pathlib.Path('begun' + words['a']).touch()\n"
        "while words['a'] == '2' and pathlib.Path('wait').exists():\n"
        "    time.sleep(0.1)\n"
    )
    own = {
        "program": "mine.py",
        "command": ["python", "mine.py", "${args}"],
        "parameters": {"a": {"values": [1, 2, 3]}},
    }
    return small(folder, **(own | changed))


def reader(patch: pytest.MonkeyPatch) -> Any:
    """What the script reads a file with."""
    patch.syspath_prepend(str(ROOT / "scripts"))
    from sweep_file import read  # type: ignore[import-not-found]

    return read


@pytest.mark.slow  # test_what_a_killed_sweep_has_left_is_removed: all of a program that imports nothing
def test_every_combination_is_run_once(tmp_path: Path, sweep_here: Any) -> None:
    done = sweep_here(small(tmp_path), "--runs", "runs", "--wandb", "disabled")
    assert done.returncode == 0, done.stderr
    rates = []
    for run in sorted((tmp_path / "runs").iterdir()):
        rates.append(yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["head_lr"])
        assert json.loads((run / "summary.json").read_text())["steps"] == 5
    assert rates == [0.1, 0.4]
    written = [(tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in ("000", "001")]
    assert sweep_here("sweep.yaml", "--runs", "runs", "--wandb", "disabled").returncode == 0
    assert written == [(tmp_path / "runs" / name / "summary.json").stat().st_mtime_ns for name in ("000", "001")]


#: What is wrong with a file, and the key that the line names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "bayes"}, "method: bayes is no grid"),
    ({"method": None}, "method: None is no grid"),
    ({"name": "../evil"}, "name: '../evil'"),
    ({"name": 5}, "name: 5"),
    ({"early_terminate": {"type": "hyperband"}}, "early_terminate: nothing is known of it"),
    ({"metric": "loss"}, "metric: 'loss'"),
    ({"metric": {"name": "message"}}, "metric.name: message is text"),
    ({"metric": {"name": "svm/limit"}}, "metric.name: svm/limit is text"),
    ({"metric": {"name": 3}}, "metric.name: 3"),
    ({"metric": {"goal": "best"}}, "metric.goal: 'best'"),
    ({"metric": {"gaol": "minimize"}}, "metric.gaol"),
    ({"parameters": None}, "parameters: there are none"),
    ({"parameters": {}}, "parameters: there are none"),
    ({"parameters": {1: {"value": 2}}}, "parameters.1: no name"),
    ({"parameters": {"a b": {"value": 2}}}, "parameters.a b: no name"),
    ({"parameters": {"run_dir": {"value": "x"}}}, "parameters.run_dir: the sweep itself"),
    ({"parameters": {"wandb": {"values": ["online"]}}}, "parameters.wandb: the sweep itself"),
    ({"parameters": {"a": 0.1}}, "parameters.a: 0.1"),
    ({"parameters": {"a": {"min": 0.1, "max": 1.0}}}, "parameters.a: it has neither"),
    ({"parameters": {"a": {"distribution": "uniform"}}}, "parameters.a: it has neither"),
    ({"parameters": {"a": {"distribution": "normal", "values": [1]}}}, "parameters.a.distribution: normal"),
    ({"parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "parameters.a: it has parameters of its own"),
    ({"parameters": {"a": {"values": 3}}}, "parameters.a.values: 3"),
    ({"parameters": {"a": {"values": "xy"}}}, "parameters.a.values: 'xy'"),
    ({"parameters": {"a": {"values": []}}}, "parameters.a.values: []"),
    ({"parameters": {"a": {"values": [1, 2, 1]}}}, "parameters.a.values: 1 is there twice"),
    ({"parameters": {"a": {"values": [True, "true"]}}}, "parameters.a.values: true is there twice"),
    ({"parameters": {"a": {"values": ["x\0"]}}}, "parameters.a.values: 'x"),
    ({"parameters": {"a": {"value": 1, "values": [1]}}}, "parameters.a: it has both"),
    ({"parameters": {"a": {"value": 1, "valeus": [1]}}}, "parameters.a.valeus"),
    ({"parameters": {k: {"values": list(range(30))} for k in "abc"}}, "parameters: 27,000 runs"),
    ({"run_cap": 0}, "run_cap: 0"),
    ({"command": "maxmargin fit"}, "command: 'maxmargin fit'"),
    ({"command": ["maxmargin", "fit"]}, "command: without ${args}"),
    ({"command": ["maxmargin", "path", "${args}"]}, "command: of maxmargin's commands only fit"),
    ({"command": ["maxmargin", "fit", "--run_dir=x", "${args}"]}, "command: --run_dir"),
    ({"command": ["maxmargin", "fit", "${args_json}", "${args}"]}, "command: ${args_json} needs"),
    ({"command": ["no-such-program", "${args}"]}, "command: there is no program no-such-program"),
    ({"command": ["${env}", "${interpreter}", "${program}", "${args}"]}, "program: the command names it"),
    ({"command": ["${program}", "${args}"], "program": "none.py"}, "program: none.py is no file"),
]


@pytest.mark.parametrize(("changed", "said"), REFUSED)
def test_what_cannot_be_run_is_refused_in_a_line_that_names_the_key(
    changed: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / small(tmp_path, **changed)
    with pytest.raises(InputError) as refused:
        reader(monkeypatch)(file)
    assert str(refused.value).startswith(f"{file}: {said}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "words", "said"),
    [
        ({"method": "bayes"}, (), "sweep.yaml: method: bayes"),
        ({"parameters": {"model.head_lrr": {"values": [1]}}}, (), "model.head_lrr"),
        ({"parameters": {"model.head_lr": {"values": [0.1, "many"]}}}, (), "model.head_lr: expected float"),
        ({}, ("--wandb", "somewhere"), "wandb: 'somewhere'"),
        ({}, ("--runs", "sweep.yaml"), "runs: sweep.yaml cannot be made"),
    ],
)
def test_nothing_is_run_or_made_where_the_sweep_is_refused(
    changed: dict[str, Any], words: tuple[str, ...], said: str, tmp_path: Path, sweep_here: Any
) -> None:
    done = sweep_here(small(tmp_path, **changed), "--runs", "runs", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("sweep: error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (b"", b"[1]", b"a: [", b"a: 1\na: 2\n", b"\xff"):
        (tmp_path / "s.yaml").write_bytes(text)
        with pytest.raises(InputError, match=r"s\.yaml"):
            reader(monkeypatch)(tmp_path / "s.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        reader(monkeypatch)(tmp_path)


def test_words_of_every_kind_of_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own agent writes Python's None and True; here they are what a config has."""
    values = {"a": [None], "b": [True], "c": [[0.0, 1]], "d": [{"x": "y"}], "e": [1e-5], "f": ["a b"]}
    found = reader(monkeypatch)(tmp_path / small(tmp_path, parameters={k: {"values": v} for k, v in values.items()}))
    words = found.words(found.combinations()[0], Path("r"), "disabled")
    assert [word for word in words if word[2:3] in values and word[3:4] == "="] == [
        "--a=null", "--b=true", "--c=[0.0, 1]", '--d={"x": "y"}', "--e=1e-05", "--f=a b",
    ]  # fmt: skip


def test_the_words_of_the_user_count_before_those_that_keep_a_run_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"command": ["maxmargin", "fit", "--report=true", "--wandb=online", "${args}"], "project": "mine"}
    found = reader(monkeypatch)(tmp_path / small(tmp_path, **changed))
    words = found.words(found.combinations()[0], Path("r"), "offline")
    assert words.index("--report=false") < words.index("--report=true")
    assert words[-2:] == ["--run_dir=r", "--wandb=offline"]
    assert {"--wandb_project=mine", "--wandb_group=rates"} <= set(words)


def test_a_cap_on_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {k: {"values": list(range(30))} for k in "abc"}
    found = reader(monkeypatch)(tmp_path / small(tmp_path, parameters=parameters, run_cap=5))
    assert [chosen["c"] for chosen in found.combinations()] == [0, 1, 2, 3, 4]


PROGRAM = """
import sys
from lightning_maxmargin.cli import command
sys.argv[1:] = ["fit", "--config", "joint/relaxed", "--trainer.max_steps=5", *sys.argv[1:]]
command()
"""


@pytest.mark.slow
def test_a_program_of_ones_own_by_the_command_that_wandb_has_where_a_file_says_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PROGRAM)
    parameters = {"model.head_lr": {"values": [0.1]}}
    file = small(tmp_path, program="mine.py", metric={"name": "norm/heed"}, parameters=parameters)
    found = yaml.safe_load((tmp_path / file).read_text())
    del found["command"]
    (tmp_path / file).write_text(yaml.safe_dump(found))
    done = sweep(tmp_path, file, "--runs", "runs", "--wandb", "disabled")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "000" / "summary.json").read_text())["steps"] == 5
    assert "sweep: no run has a norm/heed in its summary.json" in done.stderr


def test_a_program_that_leaves_no_summary_has_failed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    file = small(tmp_path, program="mine.py", command=["python", "mine.py", "${args}"])
    done = sweep(tmp_path, file, "--runs", "runs", "--wandb", "disabled")
    assert done.returncode == 1
    assert "001: it has left no summary.json" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_a_killed_sweep_has_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "runs" / ".000.0123.part"
    left.mkdir(parents=True)
    (left / "metrics.csv").write_text("half")
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    done = sweep(tmp_path, plain(tmp_path), "--runs", "runs")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["000", "001", "002", "notes.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_sweep_keeps_its_runs_and_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    words = [sys.executable, SCRIPT, plain(tmp_path), "--runs", "runs"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_for(tmp_path / "begun2")
        beside = sweep(tmp_path, *words[2:])
        run.send_signal(number)
        _, told = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "sweep: interrupted; 1 of 3 runs are made; go on with python" in told
    assert told.count("\n") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["000"]
    assert beside.returncode == 2
    assert "another sweep is writing to runs" in beside.stderr
    (tmp_path / "wait").unlink()
    assert sweep(tmp_path, *words[2:]).returncode == 0
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["000", "001", "002"]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


def test_a_run_without_a_whole_summary_is_told_before_any_run(tmp_path: Path) -> None:
    words = ("--runs", "runs")
    assert sweep(tmp_path, plain(tmp_path), *words).returncode == 0
    (tmp_path / "runs" / "001" / "summary.json").write_text("{")
    shutil.rmtree(tmp_path / "runs" / "000")
    done = sweep(tmp_path, "sweep.yaml", *words)
    assert done.returncode == 2
    assert "runs/001 has no whole summary.json" in done.stderr
    assert not (tmp_path / "runs" / "000").exists()


def test_runs_of_a_sweep_that_was_edited_are_not_taken_for_its_own(tmp_path: Path) -> None:
    assert sweep(tmp_path, plain(tmp_path), "--runs", "runs").returncode == 0
    done = sweep(tmp_path, plain(tmp_path, parameters={"a": {"values": [1, 5, 3]}}), "--runs", "runs")
    assert done.returncode == 2
    assert "runs/001 is of another sweep, or of this one before it was edited" in done.stderr


def test_a_run_that_fails_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    file = plain(tmp_path)
    with (tmp_path / "mine.py").open("a") as program:
        program.write(
            "if words['a'] == '1':\n    print('first\\nmine: error: no 1', file=sys.stderr)\n    sys.exit(2)\n"
        )
    done = sweep(tmp_path, file, "--runs", "runs")
    assert done.returncode == 1
    assert done.stderr.startswith("000: mine: error: no 1\nsweep: ")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["001", "002"]


@pytest.mark.slow
def test_a_run_of_ours_that_fails_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    # In the plane, so that one of three numbers is wrong, which the parser cannot know.
    file = small(tmp_path, parameters={"model.attention_init": {"values": ["[0.0, 0.0, 1.0]", "[0.0, -1.0]"]}})
    done = sweep(tmp_path, file, "--runs", "runs", "--wandb", "disabled")
    assert done.returncode == 1
    assert "000: maxmargin: error:" in done.stderr
    assert (tmp_path / "runs" / "001" / "summary.json").is_file()
    assert not (tmp_path / "runs" / "000").exists()


def test_the_shipped_sweep_is_over_rate_ratio_start_and_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    found = reader(monkeypatch)(ROOT / "configs" / "sweep" / "rates.yaml")
    assert list(found.values) == ["model.head_lr", "model.attention_init", "model.optimizer.weight_decay"]
    assert len(found.combinations()) == 18
    assert len({tuple(map(str, chosen.values())) for chosen in found.combinations()}) == 18
    assert found.command[0] == "${env}", "W&B's agent runs a command by it"
