"""torchrun and SLURM: one run directory for all processes, and a requeued job goes on in its own."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.distributed import TCPStore

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.directory import last_checkpoint, make_run_dir, plan_run_dir
from lightning_maxmargin.run.processes import launchable_again, requeue_job
from tests.conftest import QUIET, config

ONE_TASK = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_JOB_NAME": "fit", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty directory, and a function that sets these variables alone."""
    monkeypatch.chdir(tmp_path)

    def set_all(**variables: str) -> Path:
        for name in ("LOCAL_RANK", "MAXMARGIN_RUN_DIR", "MAXMARGIN_RUN_OWNER", "SLURM_RESTART_COUNT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return tmp_path

    return set_all


def test_slurm_has_one_directory_for_all_tasks_of_a_job(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = there(**ONE_TASK, SLURM_NTASKS_PER_NODE="2") / "runs"
    monkeypatch.setenv("SLURM_NTASKS", "2")
    first = plan_run_dir(None, "a")
    assert first.parent == folder
    assert first.name.startswith("a-slurm-77-")
    make_run_dir(first)
    (first / "config.yaml").write_text("")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert plan_run_dir(None, "a") == first
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    with pytest.raises(InputError, match="exists and is not empty"):
        plan_run_dir(None, "a")


def test_one_task_may_run_the_same_command_again(there: Any) -> None:
    there(**ONE_TASK)
    first = plan_run_dir(None, "a")
    first.mkdir(parents=True)
    (first / "config.yaml").write_text("")
    second = plan_run_dir(None, "a")
    assert second != first
    assert not second.exists()


def test_the_tasks_of_an_array_do_not_share(there: Any) -> None:
    there(**ONE_TASK, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    assert plan_run_dir(None, "a").name.startswith("a-slurm-70_3-")


def test_a_shell_in_an_allocation_is_no_job(there: Any) -> None:
    there(**{**ONE_TASK, "SLURM_JOB_NAME": "bash"})
    assert "slurm" not in plan_run_dir(None, "a").name


@pytest.mark.parametrize("wanted", [None, "mine"])
def test_a_requeued_job_finds_its_directory(wanted: str | None, there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there(**ONE_TASK)
    path = plan_run_dir(wanted, "a")
    checkpoint = path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("")
    assert last_checkpoint(path) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert plan_run_dir(wanted, "a") == path
    assert last_checkpoint(path) == checkpoint


def test_torchrun_has_the_directory_that_its_first_process_chose(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True)
    there(TORCHELASTIC_RUN_ID="none", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), LOCAL_RANK="0", RANK="0")
    from lightning_maxmargin.run import directory

    found = []
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        # Each process counts its own choices.
        monkeypatch.setattr(directory, "_choices", iter([0]))
        found.append(plan_run_dir(None, "a"))
    assert found[0] == found[1] == found[2]
    monkeypatch.setattr(directory, "_choices", iter([1]))
    monkeypatch.setenv("RANK", "0")
    assert plan_run_dir(None, "a") != found[0]


def test_processes_of_somebody_else_need_a_name(there: Any) -> None:
    there(LOCAL_RANK="1")
    with pytest.raises(InputError, match="name one directory with --run_dir"):
        plan_run_dir(None, "a")


def test_a_second_run_of_a_process_has_its_own_directory(there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there()
    make_run_dir(first := plan_run_dir(None, "a"))
    with launchable_again():
        # As Lightning's launcher leaves it in the first process.
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert plan_run_dir("second", "a").name == "second"
    assert plan_run_dir(None, "a") != first
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MAXMARGIN_RUN_OWNER", "1")
    assert plan_run_dir(None, "a") == first


def test_a_job_is_handed_back(tmp_path: Path, there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there(**ONE_TASK)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "could not be requeued (scontrol: No such file or directory)" in requeue_job(tmp_path)
    script = tmp_path / "scontrol"
    script.write_text(f"#!/bin/sh\necho $* > {tmp_path}/said\n")
    script.chmod(0o755)
    assert requeue_job(tmp_path) == f"job 77 is requeued and goes on in {tmp_path}"
    assert (tmp_path / "said").read_text() == "requeue 77\n"


def gaps(run_dir: Path) -> dict[int, str]:
    """Of every evaluation, by step, in the order of the file."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): gap for row in csv.DictReader(file) if (gap := row["direction_gap/strict"])}


@pytest.mark.slow
def test_a_requeued_job_ends_as_one_that_was_left_alone(
    there: Any, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1, as sbatch --signal sends it, in the middle; then the same command again, in the same directory."""
    folder = there(**ONE_TASK)
    script = folder / "scontrol"
    script.write_text(f"#!/bin/sh\necho $* > {folder}/said\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    words = ("fit", "--config", config("joint/random"), "--trainer.max_steps", "40", "--model.inner_steps", "5", *QUIET)
    whole = maxmargin(*words, "--run_dir", str(folder / "whole"))
    assert whole.status == 0, whole.err
    ask = ("--trust-config", "--trainer.callbacks+=tests.ddp.faults.Ask", "--trainer.callbacks.step", "20")
    ask = (*ask, "--trainer.callbacks.number", str(int(signal.SIGUSR1)))
    first = maxmargin(*words, *ask, "--run_dir", str(folder / "job"))
    assert first.status == 0, first.err
    assert f"job 77 is requeued and goes on in {folder}/job" in first.out
    assert (folder / "said").read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    second = maxmargin(*words, "--run_dir", str(folder / "job"))
    assert second.status == 0, second.err
    # It was evaluated where it stopped as well.
    found, wanted = gaps(folder / "job"), gaps(folder / "whole")
    assert list(found) == sorted({*wanted, 25})
    assert {step: found[step] for step in wanted} == wanted
    a, b = (torch.load(folder / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("job", "whole"))
    assert a["global_step"] == b["global_step"] == 40
    for name, x in b["state_dict"].items():
        assert torch.equal(a["state_dict"][name], x), name


NODES = "trainer.num_nodes: 2, but nothing starts this command on the other nodes; use torchrun"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config", "trainer/ddp", "--trainer.num_nodes", "2"), NODES),
        (("--config", "trainer/cpu", "--trainer.precision", "16-mixed"), "trainer.precision: 16-mixed is not there on"),
        (("--config", "trainer/fsdp2"), "ModelParallelStrategy shards the encoder of a TextSelection; JointSelection"),
        (("--config", "trainer/ddp", "--timeout", "0"), "timeout: 0.0; expected a positive number of seconds"),
    ],
    ids=["nodes without a launcher", "float16 autocast on a CPU", "nothing to shard", "no time"],
)
def test_what_cannot_be_is_refused_before_a_process_starts(
    words: tuple[str, ...], message: str, maxmargin: Any
) -> None:
    outcome = maxmargin("fit", "--config", config("joint/relaxed"), *words)
    assert outcome.status == 2
    assert message in outcome.error
    assert not outcome.run_dir.exists()
