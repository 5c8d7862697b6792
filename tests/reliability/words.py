"""Mutated configs and words: each is refused in one line that names the key and leaves nothing, or is done as said."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from tests.conftest import QUIET, ROOT

#: Seconds that a case may take: a refusal takes .1 s, a run of text 2 s.
LIMIT = 60
CHEAP = (*QUIET, "--trainer.max_steps", "2")
#: Shipped configs, with what makes them small.
CONFIGS: dict[str, tuple[str, ...]] = {
    "joint/relaxed": (),
    "joint/random": ("--data.n", "4"),
    "joint/tight": (),
    "ensemble/random": ("--data.B", "4"),
    "attention/multi": (),
    "text/finetune": ("--data.train", "texts.csv"),
}
TEXTS = "text,label\n" + "".join(f"a {word} film {i},{word}\n" for i in range(6) for word in ("good", "bad"))
#: Of the environment, as a run must leave them.
VARIABLES = ("LOCAL_RANK", "WORLD_SIZE", "CUBLAS_WORKSPACE_CONFIG")
#: What errors of a config as a whole may name in place of a key.
OF_THE_FILE = ("bad.yaml", "config")


@dataclass
class Case:
    """A command, the files it reads, and what must become of it.

    Attributes:
        argv: after ``fit``.
        names: the error must have one of them.
        refused: True where it must be, False where it must not, None where either will do.
        said: key and value of which ``config.yaml`` of a run must have the value at the key.
        files: beside the command.
        steps: that a run must have trained; None where nobody can tell.
        run_dir: where a run that is done must be; None where the words say another.
    """

    argv: list[str]
    names: tuple[str, ...]
    refused: bool | None = None
    said: tuple[str, Any] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    steps: int | None = None
    run_dir: str | None = "run"


@dataclass
class Left:
    """What a command left: status (None after a traceback), what it printed of errors, and new files."""

    status: int | None
    err: str
    new: list[str]

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("maxmargin: error: ")]


# --- judging --------------------------------------------------------------------------------------------------------


def trial(rng: random.Random) -> str | None:
    """One drawn case: None where it held, else what went wrong."""
    case = rng.choice(DRAWS)(rng)
    with tempfile.TemporaryDirectory() as folder:
        wrong = judge(case, Path(folder))
    return None if wrong is None else f"{wrong} [fit {' '.join(case.argv)[:300]}]{_shown(case)}"


def judge(case: Case, folder: Path) -> str | None:
    """Runs the case in ``folder``, which is empty, and says what went wrong."""
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    before = state_of_process()
    argv = ["fit", *(("--run_dir", "run") if case.run_dir == "run" else ()), *case.argv]
    left = run(argv, folder)
    if state_of_process() != before:
        return f"silent: the process is another than before ({state_of_process()})"
    if left.status is None:
        return f"traceback: {left.err.strip().splitlines()[-1][:300]} <- {place_of(left.err)}"
    if left.status != 0:
        return wrong_refusal(case, left)
    return _wrong_run(case, left, folder)


def state_of_process() -> dict[str, Any]:
    """What a command must leave as it was."""
    return {
        "dtype": torch.get_default_dtype(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(), "benchmark": torch.backends.cudnn.benchmark,
        **{name: os.environ.get(name) for name in VARIABLES},
    }  # fmt: skip


def run(argv: list[str], folder: Path) -> Left:
    """The command in this process and this folder; what it takes too long for is stopped."""
    from lightning_maxmargin.cli import main

    before, words, err, where = files_of(folder), list(sys.argv), io.StringIO(), Path.cwd()
    sys.argv = ["maxmargin"]
    started = mock.patch.object(_SubprocessScriptLauncher, "_call_children_scripts", _start_none)
    with started, _within(LIMIT), warnings.catch_warnings(), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                status: int | None = main(argv)
        except BaseException:
            traceback.print_exc()
            status = None
        finally:
            os.chdir(where)
            sys.argv = words
    return Left(status, err.getvalue(), sorted(files_of(folder) - before))


def wrong_refusal(case: Case, left: Left) -> str | None:
    if len(left.errors) != 1 or "Traceback" in left.err:
        return f"{len(left.errors)} lines of errors: {left.err[-300:]}"
    line = left.errors[0]
    if case.refused is False:
        return f"refused: {line}"
    if left.status == 1 and "NaN or Inf" in line:
        return None  # trained as said, until numbers were none
    if left.status != 2:
        return f"status {left.status}: {line}"
    if left.new:
        return f"left behind: {left.new[:5]} after {line}"
    if not any(name in line for name in case.names):
        return f"names none of {case.names}: {line}"
    return f"a line of {len(line)} characters: {line[:200]}" if len(line) > 1000 else None


def _wrong_run(case: Case, left: Left, folder: Path) -> str | None:
    if case.refused:
        return f"silent: accepted, {case.names}"
    if case.run_dir is None:
        return None
    # Where the user has said that hidden states are kept.
    cache = word_of(case.said[1]) if case.said is not None and case.said[0].endswith("cache_dir") else case.run_dir
    strangers = [name for name in left.new if name.split("/")[0] not in (case.run_dir, cache)]
    if strangers and case.run_dir == "run":
        return f"silent: files outside the run: {strangers[:5]}"
    run_dir = folder / case.run_dir
    if not (run_dir / "summary.json").is_file():
        return "silent: status 0 without a summary"
    if case.steps is not None:
        steps = yaml.safe_load((run_dir / "summary.json").read_text())["steps"]
        if steps != case.steps:
            return f"silent: {steps} steps, not {case.steps}"
    kept = yaml.safe_load((run_dir / "config.yaml").read_text())
    return None if case.said is None else _overridden(kept, *case.said)


def _overridden(kept: Any, key: str, value: Any) -> str | None:
    for part in key.split("."):
        kept = kept.get("init_args", kept) if isinstance(kept, dict) and part not in kept else kept
        kept = kept.get(part, "absent") if isinstance(kept, dict) else "absent"
    if isinstance(kept, dict) and isinstance(value, str):
        kept = kept.get("class_path")  # of a class by its name alone
    if kept == value or str(kept) == str(value) or isinstance(value, dict | list) or _equal(kept, value):
        return None
    if isinstance(value, str) and (kept == _read(value) or _equal(kept, _read(value))):
        return None  # as YAML reads 0x10
    if isinstance(kept, str) and (kept == word_of(value) or _equal(_read(kept), value)):
        return None  # an option that is text keeps the word for a number, .inf, or for none, null
    return f"silent: {key} is {kept!r}, not {value!r}"


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _equal(a: Any, b: Any) -> bool:
    try:
        return float(a) == float(b) or (a != a and b != b)
    except (TypeError, ValueError, OverflowError):
        return isinstance(a, str) and isinstance(b, str) and a.rpartition(".")[2] == b.rpartition(".")[2]


def files_of(folder: Path) -> set[str]:
    root = folder.parent  # a sibling is one level above
    inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return inside | {f"../{path.name}" for path in root.iterdir() if path.name.startswith("evil")}


def _start_none(launcher: Any) -> None:
    raise AssertionError(f"{launcher.num_processes} processes would be started")


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def place_of(err: str) -> str:
    """The last two lines of code of a traceback."""
    found = re.findall(r'File "([^"]+)", line (\d+)', err)
    return " < ".join(f"{Path(path).name}:{line}" for path, line in found[-1:-3:-1])


def _shown(case: Case) -> str:
    return "".join(f"\n    {name}: {text[:600]!r}" for name, text in case.files.items() if name == "bad.yaml")


# --- drawing --------------------------------------------------------------------------------------------------------


def base(rng: random.Random, text: float = 0.1) -> tuple[str, list[str], dict[str, bytes]]:
    """A shipped config: its name, it and a cheap one, and files; one of text, which takes seconds, this often."""
    names = [name for name in CONFIGS if name != "text/finetune"]
    name = "text/finetune" if rng.random() < text else rng.choice(names)
    files = {"texts.csv": TEXTS.encode()} if name == "text/finetune" else {}
    return name, ["--config", path_of(name), *as_config(*CHEAP, *CONFIGS[name])], files


def as_config(*words: str) -> list[str]:
    """Words that a config after them says otherwise, as no config does of words: they are one themselves."""
    config: dict[str, Any] = {}
    for key, value in zip(words[::2], words[1::2], strict=True):
        *groups, last = key.removeprefix("--").split(".")
        inside = config
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[last] = yaml.safe_load(value)
    return ["--config", yaml.safe_dump(config, default_flow_style=True, width=10**6).strip()]


def path_of(name: str) -> str:
    """The file of a shipped config."""
    return str(ROOT / "configs" / f"{name}.yaml")


def misspelt(rng: random.Random, word: str) -> str:
    """With a letter less, twice, or in another place."""
    i = rng.randrange(len(word))
    again = {"less": word[:i] + word[i + 1 :], "twice": word[:i] + word[i] + word[i:], "end": word + "s"}
    swapped = word[:i] + word[i : i + 2][::-1] + word[i + 2 :]
    found = [w for w in (*again.values(), swapped) if w and w != word]
    return rng.choice(found)


#: Values that fit few keys: of every type, out of every range.
STRANGE: tuple[Any, ...] = (
    0, -1, -7, 1.5, -0.5, 1e300, 1e-300, -1e300, float("inf"), float("-inf"), float("nan"), 2**64, -(2**64), 10**12,
    10**400, "x", "", "nul", "a" * 300, "ümlaut", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    True, False, None, [], [1], ["x"], [None], [[1, 2], [3]], {}, {"a": 1}, {"class_path": "torch.nn.Linear"},
    {"class_path": "nope.Nope"}, {"class_path": "os.system", "init_args": {"command": "touch evil"}}, [[[[[[[[]]]]]]]],
    "2026-01-01", "1_000", "0x10", "1e3", "yes", "../../evil", "/proc/none/x",
)  # fmt: skip


def word_of(value: Any) -> str:
    """As one writes it on a command line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...").strip()


def value_of_an_option(rng: random.Random) -> Case:
    """A strange value of an option of model, data, optimizer, monitor or command."""
    name, argv, files = base(rng)
    key = rng.choice(sorted(options_of(name)))
    value = rng.choice(STRANGE)
    if rng.random() < 0.3 and name != "text/finetune":
        text = yaml.safe_dump(nested(key, value), allow_unicode=True)
        files["bad.yaml"], argv = text.encode(), [*argv, "--config", "bad.yaml"]
    else:
        word = f"--{key}={word_of(value)}"
        argv = [word, *argv] if rng.random() < 0.3 else [*argv, word]
    return Case(argv, names_of(key), said=(key, value), files=files)


def nested(key: str, value: Any) -> dict[str, Any]:
    """``{a: {b: value}}`` of ``a.b``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def names_of(key: str) -> tuple[str, ...]:
    """What an error about this key may name: the key, or another of its group that it does not go with."""
    last, group = key.rpartition(".")[2], key.partition(".")[0]
    return (last, f"{group}.") if "." in key else (last,)


_OPTIONS: dict[str, set[str]] = {}
NO_OPTIONS = ("trainer", "run_dir", "wandb", "output", "ckpt_path", "weights_only", "seed_everything")


def options_of(name: str) -> set[str]:
    """Every option of a config, ``model.optimizer.lr`` among them, but those of the Trainer and a few of the run."""
    if name not in _OPTIONS:
        out = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
            (Path(folder) / "texts.csv").write_text(TEXTS)
            run_quietly = ["fit", "--config", path_of(name), "--print_config"]
            from lightning_maxmargin.cli import main

            main(run_quietly)
        kept = yaml.safe_load(out.getvalue())
        _OPTIONS[name] = set(_leaves({k: v for k, v in kept.items() if k not in NO_OPTIONS}))
    return _OPTIONS[name]


def _leaves(kept: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in kept.items():
        if key == "class_path":
            continue
        if key == "init_args":
            yield from _leaves(value, prefix)
        elif isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


# Values that are let through would train for hours, begin processes, or write to a server: they are not drawn.
_BOOL = ("x", 2, -1, "", None, [], "yess", 0.5)
_COUNT = (0, -1, -7, 1.5, "x", "", None, [], {}, 2**64, float("inf"), float("nan"), True, [1])
_SHARE = (0, 0.0, -1, -0.5, 1.5, 50, 1e300, 2**64, "x", "", None, float("nan"), float("inf"), [], {}, True, "50%")
TRAINER: dict[str, tuple[Any, ...]] = {
    "accelerator": ("cpu", "gpu", "cuda", "mps", "tpu", "hpu", "cpux", "", 3, None, [], ["cpu"], True,
                    {"class_path": "CUDAAccelerator"}, {"class_path": "torch.nn.Linear"}),
    "strategy": ("auto", "dpp", "ddpp", "fsdp", "deepspeed", "deepspeed_stage_2", "horovod", "", 5, None, "xla", "tpu",
                 "single_xla", "ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy", "SingleDeviceStrategy",
                 {"class_path": "ModelParallelStrategy", "init_args": {"save_distributed_checkpoint": False}},
                 {"class_path": "SingleDeviceStrategy", "init_args": {"device": "cpu"}},
                 {"class_path": "SingleDeviceStrategy", "init_args": {"device": "cuda"}},
                 {"class_path": "DDPStrategy", "init_args": {"nope": 1}}, ["ddp"]),
    "devices": (-7, -1, 0, "0", "x", "", None, [], ["x"], [0, 0], [-1], 1.5, 2**64, 10**9, 10**6, "auto", "1,x", {}),
    "num_nodes": (0, -1, -7, 2, 1.5, "x", None, 2**64, "", []),
    "precision": ("16", "16-mixed", 16, "bf16", "bf16-mixed", "bf16-true", "16-true", 64, "64", "32-true",
                  "transformer-engine", "transformer-engine-float16", "8", 8, "x", "", None, [], 1.5, "fp32",
                  "64-ture"),
    "logger": (True, False, None, "x", "TensorBoardLogger", "MLFlowLogger", "CometLogger", "NeptuneLogger", "CSVLogger",
               {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}, [], ["x"], 5, {},
               {"class_path": "MLFlowLogger", "init_args": {"experiment_name": "x"}},
               {"class_path": "CSVLogger", "init_args": {"nope": 1}}, [{"class_path": "NeptuneLogger"}],
               [{"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}], "LitLogger"),
    "fast_dev_run": (True, 1, 2, -1, "x", None, 1.5, [], {}),
    "max_epochs": (1, 0, -1, -7, 1.5, "x", None, [], float("inf")),
    "min_epochs": (0, -1, -7, 1.5, "x", None, []),
    "max_steps": (1, 2, -7, -2, 1.5, "x", "", None, [], {}, float("inf"), float("nan")),
    "min_steps": (1, 2, -1, -7, 1.5, "x", None, []),
    "max_time": ("00:00:01:00", "x", "", 5, None, {"seconds": 30}, {"sekunds": 3}, {"seconds": -3}, [], "1:2",
                 "-1:0:0:0"),
    "limit_train_batches": _SHARE,
    "limit_val_batches": _SHARE,
    "limit_test_batches": _SHARE,
    "limit_predict_batches": _SHARE,
    "overfit_batches": _SHARE,
    "val_check_interval": (*_SHARE, "00:00:00:05", {"seconds": 3}, {"seconds": 0}, "0:0"),
    "check_val_every_n_epoch": _COUNT,
    "num_sanity_val_steps": _COUNT,
    "log_every_n_steps": _COUNT,
    "enable_checkpointing": (*_BOOL, True, False),
    "enable_progress_bar": (*_BOOL, False),
    "enable_model_summary": (*_BOOL, True, False),
    "accumulate_grad_batches": (*_COUNT, 2),
    "gradient_clip_val": (0, 1, -1, 0.5, "x", None, float("nan"), float("inf"), [], {}),
    "gradient_clip_algorithm": ("norm", "value", "nrom", "", 5, None, []),
    "deterministic": (*_BOOL, "warn", "wran", True, False),
    "benchmark": (*_BOOL, True, False),
    "inference_mode": (*_BOOL, False),
    "use_distributed_sampler": (*_BOOL, False),
    "profiler": ("simple", "advanced", "smple", "xla", "", 5, None, [], "SimpleProfiler", "nope",
                 {"class_path": "SimpleProfiler", "init_args": {"filename": "prof"}},
                 {"class_path": "XLAProfiler"}, {"class_path": "torch.nn.Linear"}),
    "detect_anomaly": (*_BOOL, True),
    "barebones": (*_BOOL, True),
    "plugins": ("x", [], ["x"], 5, None, "TransformerEnginePrecision", "BitsandbytesPrecision", "TorchSyncBatchNorm",
                {"class_path": "BitsandbytesPrecision", "init_args": {"mode": "nf4"}}, "AsyncCheckpointIO",
                {"class_path": "TransformerEnginePrecision", "init_args": {"weights_dtype": "torch.float16"}},
                "SLURMEnvironment", "DoublePrecision", "MixedPrecision", "HalfPrecision", "XLACheckpointIO",
                "FSDPPrecision",
                {"class_path": "MixedPrecision", "init_args": {"precision": "bf16-mixed", "device": "cpu"}},
                "DeepSpeedPrecision", "XLAEnvironment", "MPIEnvironment", "KubeflowEnvironment", "TorchCheckpointIO"),
    "sync_batchnorm": (*_BOOL, True),
    "reload_dataloaders_every_n_epochs": _COUNT,
    "default_root_dir": ("elsewhere", "", 5, [], None, "a" * 300, "s3://nowhere/x"),
    "enable_autolog_hparams": (*_BOOL, False),
    "model_registry": ("x", "", 5, None, []),
}  # fmt: skip
CALLBACKS: tuple[Any, ...] = (
    "LearningRateMonitor", "EarlyStopping", "ModelCheckpoint", "Nope", "", 5, {}, [5], [None], [[]], ["Nope"],
    "TQDMProgressBar",
    ["LearningRateMonitor"], ["EarlyStopping"], ["ModelCheckpoint"], ["RichProgressBar"], ["DeviceStatsMonitor"],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "nope"}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "norm/attention", "mode": "mx"}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "norm/attention"}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "direction_gap/stricct"}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss", "patience": "x"}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss", "patience": -3}}],
    [{"class_path": "EarlyStopping", "init_args": {"monitr": "train/loss"}}],
    [{"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/nope"}}],
    [{"class_path": "ModelCheckpoint", "init_args": {"monitor": "norm/attention", "save_top_k": -7}}],
    [{"class_path": "ModelCheckpoint", "init_args": {"save_top_k": 3}}],
    [{"class_path": "ModelCheckpoint", "init_args": {"every_n_epochs": -1}}],
    [{"class_path": "ModelCheckpoint", "init_args": {"every_n_epochs": 1, "every_n_train_steps": 1}}],
    [{"class_path": "ModelCheckpoint", "init_args": {"mode": "mean"}}],
    [{"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "second"}}],
    [{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": -1}}],
    [{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.1}}],
    [{"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {0: 2}}}],
    [{"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {}}}],
    [{"class_path": "Timer", "init_args": {"duration": "nope"}}],
    [{"class_path": "Timer", "init_args": {"duration": "00:00:01:00"}}],
    [{"class_path": "BatchSizeFinder"}], [{"class_path": "LearningRateFinder"}],
    [{"class_path": "BackboneFinetuning"}], [{"class_path": "ModelSummary", "init_args": {"max_depth": -5}}],
    [{"class_path": "ModelPruning", "init_args": {"pruning_fn": "nope"}}],
    [{"class_path": "WeightAveraging"}], [{"class_path": "ThroughputMonitor"}], [{"class_path": "LambdaCallback"}],
    [{"class_path": "lightning_maxmargin.MarginMonitor", "init_args": {"per_decade": 0}}],
    [{"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}],
    [{"class_path": "os.system", "init_args": {"command": "touch evil"}}],
)  # fmt: skip
#: Values of these that are no more than what a run without them does.
NO_STEPS = ("max_steps", "max_epochs", "fast_dev_run", "max_time", "min_epochs", "min_steps", "accumulate_grad_batches")


def trainer_word(rng: random.Random) -> Case:
    """A value of an argument of the Trainer, on the command line or in a config."""
    _, argv, files = base(rng, text=0.05)
    key = rng.choice([*sorted(TRAINER), "callbacks", "callbacks"])
    value = rng.choice(CALLBACKS if key == "callbacks" else TRAINER[key])
    names = ("trainer", key, *(("monitor.",) if key == "callbacks" else ()))
    steps = None if key in NO_STEPS or key == "callbacks" else 2
    if rng.random() < 0.5:
        files["bad.yaml"] = yaml.safe_dump({"trainer": {key: value}}).encode()
        argv = [*argv, "--config", "bad.yaml"]
    else:
        argv = [*argv, f"--trainer.{key}={word_of(value)}"]
    return Case(argv, names, said=(f"trainer.{key}", value), files=files, steps=steps, run_dir=_where(key, value))


def _where(key: str, value: Any) -> str | None:
    """Where the run must be; loggers and profilers of the user's own write where the user says, a dry run nowhere."""
    own = key in ("logger", "profiler") and value not in (True, False, None)
    return None if own or key == "fast_dev_run" or (key, value) == ("callbacks", ["ModelCheckpoint"]) else "run"


def misspelt_key(rng: random.Random) -> Case:
    """A key that is none, on the command line or in a config."""
    name, argv, files = base(rng)
    known = {*options_of(name), *(f"trainer.{key}" for key in TRAINER)}
    key = rng.choice(sorted(known))
    group, _, last = key.rpartition(".")
    wrong = f"{group}.{misspelt(rng, last)}".strip(".")
    if wrong in known or any(option.startswith(wrong) for option in known):
        return misspelt_key(rng)
    if rng.random() < 0.5:
        files["bad.yaml"] = yaml.safe_dump(nested(wrong, 1)).encode()
        argv = [*argv, "--config", "bad.yaml"]
    else:
        argv = [*argv, f"--{wrong}", "1"]
    return Case(argv, (wrong.rpartition(".")[2],), refused=True, files=files)


def mutated_text(rng: random.Random) -> Case:
    """The text of a shipped config, changed in one place."""
    name, argv, files = base(rng, text=0.05)
    text = Path(path_of(name)).read_text(encoding="utf-8")
    mutate = rng.choice(TEXT_MUTATIONS)
    content, refused, names = mutate(rng, text)
    files["bad.yaml"] = content
    return Case(["--config", "bad.yaml", *argv[2:]], (*names, *OF_THE_FILE), refused=refused, files=files)


Mutated = tuple[bytes, "bool | None", "tuple[str, ...]"]
ANY_KEY = ("model", "data", "trainer", "name", "monitor", "unknown key")


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _without_a_line(rng: random.Random, text: str) -> Mutated:
    lines = _lines(text)
    del lines[rng.randrange(len(lines))]
    return "\n".join(lines).encode(), None, ANY_KEY


def _line_twice(rng: random.Random, text: str) -> Mutated:
    lines = _lines(text)
    i = rng.choice([i for i, line in enumerate(lines) if re.search(r": +[^ #]", line)])
    key = lines[i].split(":")[0].strip()
    twice = lines[i] if rng.random() < 0.5 else re.sub(r": .*", ": 3", lines[i])
    lines.insert(i + 1, twice)
    return "\n".join(lines).encode(), True, (key,)


def _tab(rng: random.Random, text: str) -> Mutated:
    lines = _lines(text)
    i = rng.choice([i for i, line in enumerate(lines) if line.startswith("  ")])
    lines[i] = "\t" + lines[i].strip()
    return "\n".join(lines).encode(), True, ANY_KEY


def _other_indent(rng: random.Random, text: str) -> Mutated:
    lines = _lines(text)
    i = rng.randrange(len(lines))
    lines[i] = " " * rng.randrange(1, 9) + lines[i].strip()
    return "\n".join(lines).encode(), None, ANY_KEY


def _cut(rng: random.Random, text: str) -> Mutated:
    text = "\n".join(_lines(text))
    return text[: rng.randrange(len(text))].encode(), None, ANY_KEY


def _other_value(rng: random.Random, text: str) -> Mutated:
    lines = _lines(text)
    i = rng.choice([i for i, line in enumerate(lines) if re.search(r": +[^ #]", line)])
    key = lines[i].split(":")[0].strip()
    lines[i] = f"{lines[i].split(':')[0]}: {word_of(rng.choice(STRANGE)) or '~'}"
    return "\n".join(lines).encode("utf-8", "replace"), None, (key, *ANY_KEY)


def _scalar(rng: random.Random, text: str) -> Mutated:
    return rng.choice([b"5", b"text", b"- 1\n- 2", b"true", b"[[]]", b"2026-01-01"]), True, ()


def _bytes(rng: random.Random, text: str) -> Mutated:
    text = "name: \u00fcml\u00e4ut\n" + text.replace("name:", "#name:")
    wrong = [text.encode("latin-1", "replace"), b"\xff\xfe\x00" + text.encode(), text.encode() + b"\x00",
             os.urandom(0) + bytes(rng.randrange(128, 256) for _ in range(50)), text.encode() + b"\x07"]  # fmt: skip
    return rng.choice(wrong), True, ()


def _whole(rng: random.Random, text: str) -> Mutated:
    """Texts that are the config still."""
    text = "\n".join(_lines(text)) + "\n"
    same = [text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode(), ("---\n" + text).encode(),
            ("# \u00fcml\u00e4ut\n" + text).encode()]  # fmt: skip
    return rng.choice(same), False, ()


def _wrong_yaml(rng: random.Random, text: str) -> Mutated:
    end = ["model: [\n", "a: b: c\n", "'x\n", "%x\n", "x: *nowhere\n",
           "x: !!python/object/apply:os.system ['touch evil']\n",
           "---\nname: x\n", "? [1]\n: 2\n", "1: 2\n", "x: " + "[" * 3000 + "\n",
           "x: " + "[" * 200 + "]" * 200 + "\n",
           "null: 3\n", "x: !nope 3\n", "<<: *x\n", "@: 1\n",
           "trainer.max_steps: 2\n", "config: bad.yaml\n"]  # fmt: skip
    return (text + rng.choice(end)).encode(), True, (*ANY_KEY, "x", "1", "null")


def _other_group(rng: random.Random, text: str) -> Mutated:
    group = rng.choice(["model", "data", "trainer", "monitor", "tokens"])
    value = rng.choice([5, "x", [], [1], None, {}, True, {"class_path": 5}, {"class_path": None}, {"init_args": {}},
                        {"class_path": "os.system"}, {"class_path": "lightning_maxmargin"}, {"class_path": ""},
                        {"class_path": "torch.nn.Linear"}, {"init_args": 5}, {"class_path": "x" * 300}])  # fmt: skip
    kept = yaml.safe_load(text)
    kept[group] = value
    return yaml.safe_dump(kept).encode(), None, (group, "class_path", "init_args", *ANY_KEY)


TEXT_MUTATIONS: tuple[Callable[[random.Random, str], Mutated], ...] = (
    _without_a_line, _line_twice, _tab, _other_indent, _cut, _other_value, _scalar, _bytes, _whole, _wrong_yaml,
    _other_group,
)  # fmt: skip

#: Words of the command itself; what must be named, and whether they must be refused.
WORDS: tuple[tuple[list[str], str, bool | None], ...] = (
    (["--name", "a" * 300], "name", True),
    (["--name", "../../evil"], "name", True),
    (["--name", "../evil"], "name", True),
    (["--name", "/proc/evil/x"], "name", True),
    (["--name", "a/b"], "name", None),
    (["--name", ""], "name", None),
    (["--name", "."], "name", None),
    (["--name", ".."], "name", None),
    (["--name", "a\x00b"], "name", True),
    (["--name", "a\nb"], "name", True),
    (["--name", "[bold]x[/red]"], "name", None),
    (["--name", "\u00fc" * 200], "name", True),
    (["--name", "-x"], "name", None),
    (["--name", "5"], "name", None),
    (["--run_dir", ""], "run_dir", True),
    (["--run_dir", "a\x00b"], "run_dir", True),
    (["--run_dir", "texts.txt"], "run_dir", True),
    (["--run_dir", "texts.txt/x"], "run_dir", True),
    (["--run_dir", "r" * 300], "run_dir", True),
    (["--run_dir", "/proc/x"], "run_dir", True),
    (["--wandb", "of"], "wandb", True),
    (["--wandb", ""], "wandb", True),
    (["--wandb_project", ""], "wandb_project", None),
    (["--wandb_project", "a/b"], "wandb_project", None),
    (["--report", "maybe"], "report", True),
    (["--timeout", "-3"], "timeout", True),
    (["--timeout", "nan"], "timeout", True),
    (["--timeout", ".inf"], "timeout", True),
    (["--timeout", "0"], "timeout", True),
    (["--timeout", "1e300"], "timeout", True),
    (["--timeout", "x"], "timeout", True),
    (["--ckpt_path", "nowhere.ckpt"], "ckpt_path", True),
    (["--ckpt_path", "texts.txt"], "ckpt_path", True),
    (["--ckpt_path", "."], "ckpt_path", True),
    (["--ckpt_path", "best"], "ckpt_path", True),
    (["--ckpt_path", "hpc"], "ckpt_path", True),
    (["--ckpt_path", ""], "ckpt_path", None),
    (["--ckpt_path", "a" * 300], "ckpt_path", True),
    (["--ckpt_path", "a\x00b"], "ckpt_path", True),
    (["--weights_only", "x"], "weights_only", True),
    (["--seed_everything", "-1"], "seed_everything", True),
    (["--seed_everything", str(2**64)], "seed_everything", True),
    (["--seed_everything", "x"], "seed_everything", True),
    (["--seed_everything", "true"], "seed_everything", None),
    (["--seed_everything", "1.5"], "seed_everything", True),
    (["--config"], "config", True),
    (["--config", ""], "config", True),
    (["--config", "."], "config", True),
    (["--config", "{"], "config", True),
    (["--config", "{a: 1}"], "a", True),
    (["--config", "a\x00b"], "config", True),
    (["--config", "x" * 300], "config", True),
    (["--config", "texts.txt"], "config", True),
    (["--nope"], "nope", True),
    (["--nope=3"], "nope", True),
    (["-x"], "x", True),
    (["stray"], "stray", True),
    (["--"], "--", None),
    (["--model", "Nope"], "model", True),
    (["--model", "torch.nn.Linear"], "model", True),
    (["--model", "os.system"], "model", True),
    (["--model="], "model", True),
    (["--model"], "model", True),
    (["--data", "Nope"], "data", True),
    (["--data", "torch.nn.Linear"], "data", True),
    (["--data", "[]"], "data", True),
    (["--data", "TextData"], "data", True),
    (["--data", "TensorData"], "data", None),
    (["--data", "RandomData"], "", None),
    (["--trainer", "5"], "trainer", True),
    (["--trainer", "[]"], "trainer", True),
    (["--trainer", "{nope: 1}"], "nope", True),
    (["--trainer.nope", "1"], "nope", True),
    (["--trainer"], "trainer", True),
    (["--monitor", "5"], "monitor", True),
    (["--trainer.max_steps"], "max_steps", True),
    (["--trainer.max_steps", "2", "3"], "3", True),
    (["--trainer.callbacks+=Nope"], "callbacks", True),
    (["--trainer.callbacks+=LearningRateMonitor"], "callbacks", None),
    (["--trainer.callbacks.nope=3"], "callbacks", True),
    (["--trainer.logger.save_dir=x"], "logger", True),
    (["--model.attention_lr", "1e300", "--trainer.precision", "32-true"], "attention_lr", None),
    (["--model.head_lr", "1e39", "--trainer.precision", "32-true"], "head_lr", None),
    (["--model.optimizer", "SGD", "--model.optimizer.momentum", "-1"], "optimizer", True),
    (["--model.optimizer", "Adam", "--model.optimizer.betas", "[2, 3]"], "optimizer", True),
    (["--model.optimizer", "Adam", "--model.optimizer.lr", "-1"], "optimizer", True),
    (["--model.optimizer", "LBFGS"], "optimizer", None),
    (["--model.optimizer", "SparseAdam"], "optimizer", None),
    (["--model.optimizer", "torch.optim.Optimizer"], "optimizer", True),
    (["--model.class_path", "Nope"], "model", True),
    (["--data.class_path", "5"], "data", True),
    (["--trainer.min_steps", "5", "--trainer.max_steps", "2"], "min_steps", True),
    (["--trainer.min_epochs", "5", "--trainer.max_epochs", "2"], "min_epochs", True),
    (["--trainer.max_epochs", "0"], "max_epochs", True),
    (["--trainer.max_steps", "-1", "--trainer.max_epochs", "0"], "max_epochs", True),
    (["--trainer.default_root_dir", "elsewhere"], "default_root_dir", True),
    (["--trainer.enable_checkpointing", "false", "--trainer.callbacks", "[ModelCheckpoint]"], "ModelCheckpoint", True),
    (["--trainer.barebones", "true"], "barebones", True),
    (["--trainer.overfit_batches", "0.1", "--trainer.limit_train_batches", "2"], "batches", None),
    (["--optimizer", "SGD"], "optimizer", True),
    (["--lr_scheduler", "StepLR"], "lr_scheduler", True),
)  # fmt: skip


def word_of_the_command(rng: random.Random) -> Case:
    """Words that are no option's value alone, and pairs that do not go together."""
    words, name, refused = rng.choice(WORDS)
    _, argv, files = base(rng, text=0.0)
    own = words[0] in ("--name", "--run_dir")
    files["texts.txt"] = TEXTS.encode()
    return Case([*argv, *words], (name,), refused, files=files, run_dir=None if own else "run")


DRAWS: tuple[Callable[[random.Random], Case], ...] = (
    value_of_an_option, value_of_an_option, trainer_word, trainer_word, trainer_word, misspelt_key, mutated_text,
    mutated_text, word_of_the_command, word_of_the_command,
)  # fmt: skip
