"""W&B: offline by default, read back from disk, and never the end of a run."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import yaml
from pytorch_lightning.loggers import Logger, WandbLogger

from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.data import RandomData
from lightning_maxmargin.run.loggers import mode_of
from lightning_maxmargin.run.wandb_launch import STAGING, launch_where_staged
from lightning_maxmargin.run.wandb_logger import MarginWandbLogger
from tests.conftest import Outcome, config, fit_once
from tests.wandb_files import records, said, summary

WORDS = (
    "fit",
    "--config",
    config("joint/tight"),
    "--trainer.max_steps",
    "60",
    "--report",
    "false",
    "--trainer.enable_progress_bar",
    "false",
)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["norm/attention"]]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run with W&B as it is by default."""
    return fit_once(tmp_path_factory.mktemp("offline"), *WORDS[1:], plain=False)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same run without W&B."""
    return fit_once(tmp_path_factory.mktemp("sound"), *WORDS[1:], "--wandb", "disabled", plain=False)


@pytest.mark.parametrize(
    ("said", "variable", "mode"),
    [
        (None, None, "offline"), (None, "disabled", "disabled"), (None, "online", "online"),
        (None, "dryrun", "offline"), (None, "DISABLED", "disabled"), (None, "shared", "offline"),
        ("offline", "disabled", "offline"), ("disabled", "online", "disabled"),
    ],
)  # fmt: skip
def test_the_command_line_then_the_environment(
    said: Any, variable: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert mode_of(said) == mode


def test_wandb_disabled_by_its_variable(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = maxmargin(*WORDS[:3], "--trainer.max_steps", "9", "--report", "false", plain=False)
    assert run.status == 0, run.err
    assert not (run.run_dir / "wandb").exists()
    assert (run.run_dir / "metrics.csv").is_file()


def test_offline_run_reads_back_what_the_csv_says(offline: Outcome) -> None:
    found = records(offline.run_dir)
    history = [r["history"] for r in found if r["type"] == "history"]
    written = json.dumps(history)
    assert "direction_gap/strict" in written
    last = rows(offline.run_dir)[-1]
    assert f"{float(last['direction_gap/head']):.6g}"[:6] in written
    assert (offline.run_dir / "wandb_id.txt").read_text() in json.dumps(found)


def test_axes_are_defined(offline: Outcome) -> None:
    metrics = {json.dumps(r["metric"]) for r in records(offline.run_dir) if r["type"] == "metric"}
    gaps = [m for m in metrics if "direction_gap" in m]
    assert gaps
    assert all("norm/attention" in m for m in gaps)


def test_disabled_leaves_no_wandb(sound: Outcome) -> None:
    assert not (sound.run_dir / "wandb").exists()
    assert rows(sound.run_dir)


def config_of(run_dir: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for update in said(run_dir, "config"):
        merged |= update["update"]
    return merged


def test_two_runs_that_differ_in_one_word_are_told_apart(tmp_path: Path) -> None:
    words = ("--config", config("joint/random"), "--trainer.max_steps", "3", "--report", "false", "--name", "same")
    found = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        found.append(config_of(fit_once(tmp_path / seed, *words, "--data.seed", seed, plain=False).run_dir))
    a, b = found
    assert {key for key in a | b if a.get(key) != b.get(key)} == {"data.seed", "command"}
    assert (a["data.seed"], b["data.seed"]) == (1, 2)
    assert {
        "seed_everything",
        "model.optimizer",
        "model.optimizer.lr",
        "trainer.precision",
        "trainer.strategy",
    } <= a.keys()
    assert {"versions.torch", "versions.lightning-maxmargin", "world_size"} <= a.keys()


def test_every_number_of_the_summary_is_in_that_of_wandb(offline: Outcome) -> None:
    found = summary(offline.run_dir)
    for key, value in offline.summary.items():
        told = found[key]
        told = told["last"] if isinstance(told, dict) else told
        assert told == (pytest.approx(value, rel=1e-12, abs=0) if isinstance(value, float) else value), key


WANDB_SAYS = {"project": "p", "entity": "e", "group": "g", "job_type": "j", "notes": "n n", "id": "abc123"}
VARIABLES = {
    "WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_RUN_GROUP": "g", "WANDB_JOB_TYPE": "j", "WANDB_NOTES": "n n",
    "WANDB_RUN_ID": "abc123", "WANDB_TAGS": "one,two", "WANDB_NAME": "shown",
}  # fmt: skip


def run_record(run_dir: Path) -> dict[str, Any]:
    return dict(said(run_dir, "run")[0])


def assert_told(run: dict[str, Any]) -> None:
    told = {"project": run["project"], "entity": run["entity"], "group": run["run_group"], "job_type": run["job_type"],
            "notes": run["notes"], "id": run["run_id"]}  # fmt: skip
    assert told == WANDB_SAYS
    assert run["tags"] == ["one", "two"]


def test_words_of_wandb_by_option(tmp_path: Path) -> None:
    options = [word for name, value in WANDB_SAYS.items() for word in (f"--wandb_{name}", value)]
    run = fit_once(tmp_path, *WORDS[1:], *options, "--wandb_tags", "[one, two]", plain=False).run_dir
    assert_told(run_record(run))
    assert run_record(run)["display_name"] == "joint-tight"


@pytest.mark.slow
def test_words_of_wandb_by_its_variables(tmp_path: Path) -> None:
    """In a process of its own: W&B reads its environment once per process."""
    words = [sys.executable, "-m", "lightning_maxmargin", *WORDS, "--run_dir", "run"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MAXMARGIN_"))} | VARIABLES
    subprocess.run(words, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert_told(run_record(tmp_path / "run"))
    assert run_record(tmp_path / "run")["display_name"] == "shown"


def test_a_call_that_is_made_of_others_comes_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    logger, said = MarginWandbLogger(tmp_path, "run"), []

    class Run:
        def log(self, metrics: Any) -> None:
            said.append(sorted(metrics))

        def finish(self, exit_code: int) -> None:
            said.append(["finish", exit_code])

    monkeypatch.setattr(wandb, "init", lambda **words: Run())
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_table("tokens", columns=["a"], data=[[1]])
    logger.close()
    assert said == [["a", "trainer/global_step"], ["tokens"], ["finish", 0]]


@pytest.mark.parametrize(("offline", "mode"), [(True, "offline"), (False, "online")])
def test_an_option_counts_before_the_variable(
    offline: bool, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said to W&B itself, which reads its variables once a process."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert MarginWandbLogger(tmp_path, "run", offline=offline)._wandb_init["mode"] == mode


def test_an_id_that_is_given_counts_before_the_one_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    (tmp_path / "wandb_id.txt").write_text("kept")
    begun = []

    def init(**words: Any) -> Any:
        begun.append(words["id"])
        raise wandb.Error("no more is needed")

    monkeypatch.setattr(wandb, "init", init)
    for given in ({}, {"id": "mine"}):
        logger = MarginWandbLogger(tmp_path, "run", **given)
        assert not logger.experiment.config
        with pytest.warns(UserWarning, match="no more is needed"):
            logger.close()
        assert not logger.experiment.log({"a": 1.0})
    assert begun == ["kept", "mine"]


@pytest.mark.parametrize("wait", ["-1", "nan", "inf"])
def test_a_wait_that_is_none_is_refused(wait: str, maxmargin: Any) -> None:
    outcome = maxmargin(*WORDS, "--wandb_wait", wait, plain=False)
    assert outcome.status == 2
    assert outcome.error.startswith("maxmargin: error: wandb_wait: ")


def test_words_of_a_run_that_wandb_does_not_get_are_refused(maxmargin: Any) -> None:
    outcome = maxmargin(*WORDS, "--trainer.logger", "false", "--wandb_tags", "[a]", plain=False)
    assert outcome.status == 2
    assert "wandb_tags: trainer.logger names the loggers" in outcome.error
    assert not outcome.run_dir.exists()


def test_figures_report_and_checkpoint(tmp_path: Path) -> None:
    words = ("--config", config("joint/tight"), "--trainer.max_steps", "20", "--report", "true")
    run = fit_once(tmp_path, *words, "--wandb_log_model", "true", plain=False).run_dir
    last = said(run, "history")[-1]["item"]
    for figure in ("paths", "direction_gap", "relative_margin", "selected_mass"):
        assert last[f"figures/{figure}._type"] == "image-file"
    assert last["report._type"] == "html-file"
    assert last["trainer/global_step"] == 20
    held = [{entry["path"] for entry in artifact["manifest"]["contents"]} for artifact in said(run, "artifact")]
    assert {"report.html", "summary.json", "metrics.csv"} in held
    assert {"last.ckpt", "config.yaml"} in held


class Recorder(Logger):
    """A logger of the user's own: the numbers of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int | None, dict[str, float]]] = []
        RECORDERS.append(self)

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self.hyperparams = args

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls.append((step, dict(metrics)))


RECORDERS: list[Recorder] = []
RECORDER = "tests.cli.test_wandb.Recorder"
TIMED = ("seconds", "monitor/seconds", "monitor/final_seconds")


def of_lightning(kind: str, save_dir: str, **options: Any) -> str:
    return json.dumps({"class_path": kind, "init_args": {"save_dir": save_dir, **options}})


def packed(module: str, *words: str) -> Any:
    """A logger whose package may not be there."""
    missing = pytest.mark.skipif(all(find_spec(name) is None for name in module.split()), reason=f"no {module}")
    return pytest.param(words, marks=missing, id=module.split()[0])


@pytest.mark.parametrize(
    "logger",
    [
        pytest.param(("false",), id="none", marks=pytest.mark.slow),
        pytest.param(("CSVLogger", "--trainer.logger.save_dir", "own"), id="csv", marks=pytest.mark.slow),
        pytest.param((of_lightning("WandbLogger", "own", offline=True),), id="wandb", marks=pytest.mark.slow),
        pytest.param((f"[{of_lightning('CSVLogger', 'own')}, {of_lightning('WandbLogger', 'own', offline=True)}]",),
                     id="several"),
        pytest.param((f"[{RECORDER}, {of_lightning('CSVLogger', 'own')}]", "--trust-config"), id="one's own"),
        packed("tensorboard tensorboardX", of_lightning("TensorBoardLogger", "own")),
        packed("mlflow", of_lightning("MLFlowLogger", "own")),
    ],
)  # fmt: skip
def test_report_rows_and_summary_are_whole_whatever_logs(
    logger: tuple[str, ...], maxmargin: Any, offline: Outcome
) -> None:
    RECORDERS.clear()
    outcome = maxmargin(*WORDS[:-4], "--report", "true", *WORDS[-2:], "--trainer.logger", *logger, plain=False)
    assert outcome.status == 0, outcome.err
    assert without(TIMED, rows(outcome.run_dir)) == without(TIMED, rows(offline.run_dir)) != []
    assert without(TIMED, [outcome.summary]) == without(TIMED, [offline.summary])
    drawn = sorted(path.stem for path in (outcome.run_dir / "figures").glob("*.png"))
    assert drawn == ["direction_gap", "paths", "relative_margin", "selected_mass"]
    assert (outcome.run_dir / "report.html").read_text().count("data:image/png") == len(drawn)
    for recorder in RECORDERS:
        assert [(str(step), str(row["norm/attention"])) for step, row in recorder.calls if "norm/attention" in row] == [
            (row["step"], row["norm/attention"]) for row in rows(outcome.run_dir) if row["norm/attention"]
        ]


def without(keys: tuple[str, ...], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


@pytest.mark.parametrize("options", [{"name": "", "version": ""}, {"name": "../run", "version": ""}])
def test_rows_of_another_logger_are_not_mixed_with_those_of_the_run(options: dict[str, str], maxmargin: Any) -> None:
    outcome = maxmargin(*WORDS, "--trainer.logger", of_lightning("CSVLogger", "run", **options), plain=False)
    assert outcome.status == 2
    assert "trainer.logger: CSVLogger would write among the rows of the run itself" in outcome.error
    assert not outcome.run_dir.exists()


def test_a_csv_logger_may_write_inside_the_run(maxmargin: Any, offline: Outcome) -> None:
    words = ("--report", "false", "--trainer.logger", of_lightning("CSVLogger", "run"))
    outcome = maxmargin(*WORDS[:-4], *WORDS[-2:], *words, plain=False)
    assert outcome.status == 0, outcome.err
    assert (outcome.run_dir / "lightning_logs" / "version_0" / "metrics.csv").is_file()
    assert without(TIMED, rows(outcome.run_dir)) == without(TIMED, rows(offline.run_dir))


def test_axes_of_a_logger_of_lightnings_own(tmp_path: Path) -> None:
    """From Python, where no command line has made the logger."""
    logger = WandbLogger(save_dir=tmp_path, offline=True, settings={"silent": True})
    trainer = pl.Trainer(
        max_steps=5, max_epochs=-1, accelerator="cpu", logger=logger, callbacks=[MarginMonitor()],
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(JointSelection(dim=5), datamodule=RandomData(n=4, d=5))
    logger.experiment.finish()
    defined = [json.dumps(metric) for metric in said(tmp_path, "metric")]
    assert any("direction_gap/strict" in m and "norm/attention" in m for m in defined)


def test_a_config_with_a_long_path_is_kept_whole(tmp_path: Path) -> None:
    """YAML folds a long value with blanks into several lines."""
    folder = tmp_path / " ".join(["a long name of a folder"] * 6)
    folder.mkdir()
    run = fit_once(folder, *WORDS[1:], "--wandb", "disabled", plain=False).run_dir
    config_kept = yaml.safe_load((run / "config.yaml").read_text())
    assert config_kept["name"] == "joint-tight"
    assert "run_dir" not in config_kept


def test_losses_are_logged_at_every_evaluation(offline: Outcome) -> None:
    assert all(row["train/loss"] for row in rows(offline.run_dir))


def test_the_test_row_is_at_its_optimisation_step(tmp_path: Path) -> None:
    words = ("--config", config("text/planted"), "--trainer.max_steps", "30", "--model.inner_steps", "10")
    run = fit_once(tmp_path, *words, "--report", "false").run_dir
    with (run / "metrics.csv").open() as file:
        tested = [row for row in csv.DictReader(file) if row["test/accuracy"]]
    assert [float(row["step"]) for row in tested] == [30]
    assert "step" not in json.loads((run / "summary.json").read_text())


#: A callback of the user's own that ends a run at its 30th step, or a little later.
FAILS = """
import os, signal
from pytorch_lightning.callbacks import Callback
from lightning_maxmargin.errors import NonFiniteError

class Fails(Callback):
    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step >= 30:
            if self.how == "overflow":
                raise NonFiniteError("w overflows in step 30; lower the learning rate")
            if self.how == "error":
                raise KeyError("of the user's own\\nand another line")
            os.kill(os.getpid(), signal.SIGINT)
"""


# Of two forked processes Lightning hands on neither an interrupt nor an error but as its traceback.
@pytest.mark.parametrize(
    ("how", "message", "processes"),
    [
        pytest.param("overflow", "w overflows in step 30; lower the learning rate", 1, marks=pytest.mark.slow),
        ("overflow", "w overflows in step 30; lower the learning rate", 2),
        ("error", "KeyError: ", 1),
        ("interrupt", "Interrupted at step 3", 1),
    ],
)
def test_a_run_that_failed_says_so(
    how: str, message: str, processes: int, tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"fails_{how}_{processes}"
    (tmp_path / f"{name}.py").write_text(FAILS)
    given = f'{{"class_path": "{name}.Fails", "init_args": {{"how": "{how}"}}}}'
    words = [*WORDS, "--trust-config", "--trainer.callbacks", f"[{given}]", "--model.inner_steps", "10"]
    if processes == 2:
        words += ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--trainer.accelerator", "cpu"]
    try:
        assert maxmargin(*words, plain=False).status == 1
    except KeyError:
        assert how == "error"
    run = tmp_path / "run"
    assert [ended["exit_code"] for ended in said(run, "exit")] == [1]
    told = summary(run)
    assert message in told["message"], "with the rank before it, where there are several"
    assert "\n" not in told["message"]
    assert (told["status/attention"], told["svm/limit"]) == ("certified", "strict")


class FullDisk(io.StringIO):
    """Takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_page_for_each_line_of_wandbs_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = MarginWandbLogger(tmp_path, "run")
    logger.opened()
    own = logging.getLogger("wandb")
    files = [handler for handler in own.handlers if isinstance(handler, logging.FileHandler)]
    assert files
    for handler in files:
        handler.setStream(FullDisk()).close()  # type: ignore[arg-type, union-attr]
    capsys.readouterr()
    own.info("a line")
    assert capsys.readouterr().err == ""
    logger.close()


@pytest.mark.parametrize("own", [False, True], ids=["ours", "WandbLogger"])
def test_without_a_key_it_goes_on_offline(
    own: bool, tmp_path: Path, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    begun, init = [], wandb.init

    def without_a_key(**words: Any) -> Any:
        begun.append(words)
        if words.get("mode") != "offline":
            raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")
        return init(**words)

    monkeypatch.setattr(wandb, "init", without_a_key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = ("--trainer.logger", "WandbLogger", "--trainer.logger.project", "mine", "--trainer.logger.name", "n",
              "--trainer.logger.save_dir", "own")  # fmt: skip
    (tmp_path / "own").mkdir()
    with pytest.warns(UserWarning, match="going on offline") as warned:
        outcome = maxmargin(*WORDS, *(logger if own else ("--wandb", "online")), plain=False)
    assert outcome.status == 0, outcome.err
    assert sum("W&B" in str(one.message) for one in warned) == 1
    assert len(begun) == 2
    run = run_record(tmp_path / "own" if own else outcome.run_dir)
    assert run["run_id"] == (outcome.run_dir / "wandb_id.txt").read_text() == begun[0]["id"]
    if own:
        assert (run["project"], run["display_name"]) == ("mine", "n")


def test_training_does_not_wait_for_a_run_that_is_being_opened(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    trained, init, found = threading.Event(), wandb.init, []

    def slow(**words: Any) -> Any:
        found.append(trained.wait(60))
        return init(**words)

    monkeypatch.setattr(wandb, "init", slow)
    monkeypatch.setattr(JointSelection, "on_fit_end", lambda self: trained.set(), raising=False)
    outcome = maxmargin(*WORDS, plain=False)
    assert found == [True], "it was opened when training was over"
    assert len(said(outcome.run_dir, "history")) >= len(rows(outcome.run_dir)), "and has all that came before"


#: In a process of its own: stops W&B's service once the run is open.
STOPPED = """
import os, signal, subprocess, sys, time
command = [sys.executable, "-m", "lightning_maxmargin", *sys.argv[1:]]
child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
found = ""
while not found or not os.path.exists("run/wandb_id.txt"):
    assert child.poll() is None, child.stderr.read()
    found = subprocess.run(["pgrep", "-P", str(child.pid), "-f", "wandb-core"], capture_output=True, text=True).stdout
os.kill(int(found.split()[0]), signal.SIGSTOP)
said = child.communicate()[1]
print(child.returncode, "no answer in" in said, "Traceback" in said)
"""


@pytest.mark.slow
def test_a_stopped_service_is_given_up(tmp_path: Path, maxmargin: Any) -> None:
    # Some seconds, of which the service is there for most.
    longer = tuple("3000" if word == "60" else word for word in WORDS)
    sound, folder = maxmargin(*longer, "--wandb", "disabled", plain=False), tmp_path / "stopped"
    folder.mkdir()
    # Not W&B's own variables: the process would join the service of this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MAXMARGIN_"))}
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *longer, "--wandb", "offline", "--run_dir", "run"],
        capture_output=True, text=True, cwd=folder, timeout=120, env=environment,
    )  # fmt: skip
    assert done.stdout.split()[-3:] == ["0", "True", "False"], done.stderr
    same_training(sound, Outcome(0, "", "", folder / "run"))


def same_training(a: Any, b: Any) -> None:
    """The same weights and a complete CSV, whatever became of W&B."""
    assert a.status == b.status == 0, b.err
    np.testing.assert_array_equal(
        np.load(a.run_dir / "paths.npz")["attention"], np.load(b.run_dir / "paths.npz")["attention"]
    )
    assert [r["step"] for r in rows(a.run_dir)] == [r["step"] for r in rows(b.run_dir)]


def test_unwritable_directory_costs_no_training(
    sound: Outcome, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "init", full)
    with pytest.warns(UserWarning, match="going on without it"):
        broken = maxmargin(*WORDS, plain=False)
    same_training(sound, broken)


def test_failure_in_the_middle_costs_no_training(
    sound: Outcome, maxmargin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    calls: list[int] = []

    def breaks(self: Any, metrics: Any, step: Any = None) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise wandb.Error("server went away")

    monkeypatch.setattr(WandbLogger, "log_metrics", breaks)
    with pytest.warns(UserWarning, match="server went away"):
        broken = maxmargin(*WORDS, plain=False)
    assert len(calls) == 3, "one warning, then no further call"
    same_training(sound, broken)


@pytest.mark.slow
def test_unreachable_server_goes_on_offline(tmp_path: Path, sound: Outcome) -> None:
    """In a process of its own: W&B reads its environment once per process. A busy machine opens a run for seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MAXMARGIN_"))}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "5"}
    words = [sys.executable, "-m", "lightning_maxmargin", *WORDS, "--wandb", "online", "--wandb_wait", "60"]
    words += ["--run_dir", "other"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert "going on offline" in done.stderr
    same_training(sound, Outcome(done.returncode, done.stdout, done.stderr, tmp_path / "other"))
    assert records(tmp_path / "other")


def test_the_launcher_is_asked_only_where_a_job_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.wandb_run import Run

    asked: list[Any] = []
    monkeypatch.setattr(Run, "_detect_and_apply_job_inputs", asked.append)
    monkeypatch.delitem(sys.modules, STAGING, raising=False)
    for _ in range(2):
        launch_where_staged()
    Run._detect_and_apply_job_inputs(1)
    assert asked == []
    monkeypatch.setitem(sys.modules, STAGING, ModuleType(STAGING))
    Run._detect_and_apply_job_inputs(2)
    assert asked == [2]
