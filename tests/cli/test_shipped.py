"""The configs inside the package: found by name from any directory, and a file on disk wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.shipped import find_config, shipped_folder, shipped_names, with_files
from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["joint/relaxed", "joint/relaxed.yaml", "configs/joint/relaxed.yaml"])
def test_a_name_is_found_from_any_directory_and_a_file_on_disk_wins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == str(shipped_folder() / "joint" / "relaxed.yaml")
    own = tmp_path / name
    own = own if own.suffix else own.with_suffix(".yaml")
    own.parent.mkdir(parents=True)
    own.write_text("name: mine\n")
    assert Path(find_config(name)).samefile(own)


def test_every_config_of_the_repository_is_shipped() -> None:
    folder = ROOT / "configs"
    assert shipped_names() == sorted(str(p.relative_to(folder))[:-5] for p in folder.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("joint/relxed", "did you mean joint/relaxed"),
        ("planted", "did you mean text/planted"),
        ("qqqq", "the shipped ones are in"),
    ],
)
def test_a_name_that_is_neither_is_told_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"^config: {name} is neither a file nor a shipped config; {hint}"):
        find_config(name)


def test_only_configs_are_looked_up_however_they_are_written() -> None:
    written_out = '{"seed_everything": 1}'
    tensor = find_config("tensor")
    words = ["--config", written_out, "--config=tensor", "--name", "tensor", "-c", "tensor", "--config", "-"]
    configs = ["--config", written_out, "--config", tensor, "--config", tensor, "--config", "-"]
    assert with_files(words) == [*configs, "--name", "tensor"]
    assert with_files(["-ctensor", "-c=tensor"]) == ["--config", tensor] * 2
    assert with_files(["--name", "tensor", "--config"]) == ["--name", "tensor", "--config"]  # the parser says so


@pytest.mark.parametrize("config", [("--config", "joint/relaxed"), ("-c", "joint/relaxed"), ("-cjoint/relaxed",)])
def test_a_word_counts_before_its_config_as_well(config: tuple[str, ...], maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--name", "mine", "--trainer.max_steps=20", *config, "--config=trainer/bf16")
    assert outcome.status == 0, outcome.err
    assert (outcome.summary["name"], outcome.summary["steps"]) == ("mine", 20)
    assert "precision: bf16-mixed" in (outcome.run_dir / "config.yaml").read_text()


def test_a_word_before_the_config_of_a_path_counts(maxmargin: Any) -> None:
    outcome = maxmargin("path", "--name", "mine", "--config", "paths/local", "--print_config")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("name: mine\n")


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (("fit", "--config", "joint/relaxed", "--trainer.max_ste", "20"), "trainer.max_steps"),
        (("fit", "--conf", "joint/relaxed"), "config"),
        (("test", "--config", "joint/relaxed", "--ckpt_pa", "last"), "ckpt_path"),
        (("path", "--conf", "paths/local"), "config"),
        (("reproduce", "--quic"), "quick"),
        (("evaluate", "run", "--hel"), "help"),
        (("compare", "run", "run", "--see", "3"), "seed"),
        (("layers", "--data.tr", "x"), "data.train"),
        (("report", "--hel"), "help"),
    ],
    ids=lambda value: "-".join(value[::2]) if isinstance(value, tuple) else value,
)
def test_the_beginning_of_a_word_is_no_word(words: tuple[str, ...], whole: str, maxmargin: Any) -> None:
    """What reads a command line word by word, a run that goes on or a search for configs, would not know it."""
    outcome = maxmargin(*words)
    assert outcome.status == 2
    assert outcome.error.endswith(f"did you mean {whole}?")
    assert not outcome.run_dir.exists()


def test_fit_takes_names_as_layers(maxmargin: Any) -> None:
    words = ("--config", "joint/relaxed", "--config", "trainer/bf16", "--trainer.max_steps", "20")
    outcome = maxmargin("fit", *words)
    assert outcome.status == 0, outcome.err
    assert outcome.summary["name"] == "joint-relaxed"
    assert "precision: bf16-mixed" in (outcome.run_dir / "config.yaml").read_text()


def test_a_wrong_name_is_one_line_and_status_2(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", "joint/relxed")
    assert outcome.status == 2
    assert outcome.error.startswith("maxmargin: error: config: joint/relxed is neither a file nor a shipped config")
    assert not outcome.run_dir.exists()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wheel built from a copy of the sources was installed, alone."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "configs", "lightning_maxmargin"):
        os.symlink(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    for words in (
        ["wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            "--find-links",
            str(folder),
            "lightning-maxmargin",
        ],
    ):
        subprocess.run([*pip, *words], check=True, capture_output=True, text=True, timeout=300)
    return site


def run_installed(site: Path, where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    call = [sys.executable, "-m", "lightning_maxmargin", *words]
    return subprocess.run(call, cwd=where, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_wheel_brings_its_configs(installed: Path, tmp_path: Path) -> None:
    """In an empty directory, with nothing of the repository in sight."""
    words = ("--trainer.max_steps", "50", "--wandb", "disabled", "--report", "false", "--run_dir", "run")
    fit = run_installed(installed, tmp_path, "fit", "--config", "joint/relaxed", *words)
    assert fit.returncode == 0, fit.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 50
    reproduced = run_installed(installed, tmp_path, "reproduce", "joint_relaxed", "--quick", "--out", "out")
    assert reproduced.returncode == 0, reproduced.stderr
    wrong = run_installed(installed, tmp_path, "fit", "--config", "nowhere")
    assert wrong.returncode == 2
    assert str(installed / "lightning_maxmargin" / "configs") in wrong.stderr


@pytest.mark.slow
def test_a_wheel_holds_every_config(installed: Path) -> None:
    folder = installed / "lightning_maxmargin" / "configs"
    found = sorted(str(p.relative_to(folder))[:-5] for p in folder.rglob("*.yaml"))
    assert found == shipped_names()
    assert len(found) > 30


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["fit", "--help"], 0),
        (["fit", "--config", "joint/relaxed", "-h"], 0),
        (["predict", "--help"], 0),
        (["path", "--help"], 0),
        (["report", "--help"], 0),
        (["reproduce", "--help"], 0),
        ([], 2),
        (["fir"], 2),
        (["fit", "--config", "joint/relxed"], 2),
    ],
)
def test_help_imports_neither_torch_nor_lightning(words: list[str], status: int) -> None:
    code = (
        "import sys, resource; from lightning_maxmargin.cli import main; status = main(sys.argv[1:]);"
        "found = {m.split('.')[0] for m in sys.modules} & {'torch', 'pytorch_lightning', 'numpy', 'wandb', 'cvxpy'};"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        "print('found', status, sorted(found), used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True)
    last = done.stdout.splitlines()[-1].split(" ", 2)
    assert last[:2] == ["found", str(status)]
    assert last[2].startswith("[] ")
    assert float(last[2].removeprefix("[] ")) < 0.5
