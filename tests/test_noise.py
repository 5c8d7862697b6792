"""What Lightning says beside the point is not heard, what it says to the point is, and the user decides."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lightning_maxmargin import noise

FIT = """
import logging
import pytorch_lightning as pl
from lightning_maxmargin import JointSelection, MarginMonitor
from lightning_maxmargin.data import PaperData

trainer = pl.Trainer(max_steps=20, max_epochs=-1, callbacks=[MarginMonitor()], enable_progress_bar=False,
                     enable_model_summary=False, accelerator="cpu")
trainer.fit(JointSelection(dim=2), PaperData("joint_relaxed"))
trainer.save_checkpoint("mine.ckpt")
# As Lightning itself sets it.
assert logging.getLogger("pytorch_lightning").level == logging.INFO
"""


def lines_of(code: str, folder: Path, **environment: str) -> list[str]:
    """What a fresh interpreter writes on both streams."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=120, check=True,
    )  # fmt: skip
    return [line for line in done.stdout.split("\n") if line]


def test_a_run_from_python_says_why_it_ended_and_nothing_else(tmp_path: Path) -> None:
    assert lines_of(FIT, tmp_path) == ["`Trainer.fit` stopped: `max_steps=20` reached."]


@pytest.mark.slow
def test_the_variable_leaves_lightning_as_it_is(tmp_path: Path) -> None:
    """And what we silence is what this Lightning says."""
    said = "\n".join(lines_of(FIT, tmp_path, MAXMARGIN_NOISE="1"))
    for heard in ("litlogger", "litmodels", "TPU available: False", "tensorboardX", "Total length of `list`"):
        assert heard in said
    assert "number of training batches (1) is smaller" in said
    assert "weights_only" in said


@pytest.mark.parametrize(
    "text",
    ["GPU available: True (cuda), used: True", "GPU available: False, used: False!", "Restoring states", "Tip: x"],
)
def test_other_lines_are_heard(text: str) -> None:
    record = logging.LogRecord(noise.LOGGERS[0], logging.INFO, "", 0, text, None, None)
    assert noise.Advertisements().filter(record)


def test_a_filter_of_the_user_counts_first() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        noise.silence()
        with pytest.raises(UserWarning, match="many workers"):
            warnings.warn("The 'train_dataloader' does not have many workers.", stacklevel=1)


def test_a_frozen_encoder_is_expected_in_eval_mode_and_no_other_module() -> None:
    warning = "Found {} module(s) in eval mode at the start of training. This may lead to"
    with warnings.catch_warnings(record=True) as heard:
        warnings.resetwarnings()
        noise.expect_in_eval(84)
        for count in (84, 85, 8):
            warnings.warn(warning.format(count), stacklevel=1)
    assert [str(x.message)[:8] for x in heard] == ["Found 85", "Found 8 "]


def test_our_own_notes_are_on_a_logger_of_our_own(caplog: pytest.LogCaptureFixture) -> None:
    from lightning_maxmargin.callbacks.evaluation_schedule import LOGGER, note

    assert LOGGER.level == logging.NOTSET
    note("unheard")
    with caplog.at_level("INFO", logger="lightning_maxmargin"):
        note("heard")
    assert caplog.messages == ["heard"]


def test_a_command_in_this_process_leaves_levels_as_they_are() -> None:
    """A level that the command line once set was undone by Lightning's import, or hid a notebook's own runs."""
    before = {name: logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric", "")}
    with warnings.catch_warnings():
        noise.silence_runs()
    assert before == {name: logging.getLogger(name).level for name in before}
