"""``maxmargin fit`` of a LightningModule of the user's own, whose attention heads are watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Outcome, fit_once

OWN = "tests.cli.own_module"
AUTO = ("--monitor.sources", "auto", "--trust-config")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    words = ("--model", f"{OWN}.WithLoaders", *AUTO, "--trainer.max_epochs", "8", "--report", "true")
    return fit_once(tmp_path_factory.mktemp("own"), *words)


def test_a_module_with_its_own_loaders_is_trained_and_watched(trained: Outcome) -> None:
    summary = trained.summary
    assert summary["steps"] == 32
    assert summary["heads/certified"] + summary["heads/infeasible"] <= 4
    assert summary["message"].startswith("4 heads")
    assert summary["val/accuracy"] is not None
    assert summary["train/loss"] is not None
    assert summary["encoder.layers.1.self_attn/head1/norm/attention"] > 0


def test_its_report_has_grid_slider_and_tokens(trained: Outcome) -> None:
    heads = json.loads((trained.run_dir / "heads.json").read_text())
    assert heads["heads"] == [f"encoder.layers.{i}.self_attn/head{h}" for i in (0, 1) for h in (0, 1)]
    assert (heads["steps"][0], heads["steps"][-1]) == (0, 32)
    assert len(heads["steps"]) > 3
    assert all(len(sample) == 7 for sample in heads["tokens"]), "the numbers of its words"
    page = (trained.run_dir / "report.html").read_text()
    assert page.count("data-head=") == 4
    assert f'max="{len(heads["steps"]) - 1}"' in page
    assert trained.summary["message"].split(":")[0] in page


def test_its_config_runs_the_same_again(trained: Outcome, maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--config", str(trained.run_dir / "config.yaml"), "--trust-config")
    assert outcome.status == 0, outcome.err
    same = ("val/accuracy", "encoder.layers.1.self_attn/head1/norm/attention")
    assert [outcome.summary[key] for key in same] == [trained.summary[key] for key in same]


def test_a_data_module_of_the_users_own(maxmargin: Any, tmp_path: Path) -> None:
    words = ("--model", f"{OWN}.Classifier", "--data", f"{OWN}.Data", *AUTO)
    outcome = maxmargin("fit", *words, "--trainer.max_steps", "12", "--monitor.layers", "layers.1")
    assert outcome.status == 0, outcome.err
    assert outcome.summary["test/accuracy"] is not None
    assert not any("layers.0" in key for key in outcome.summary)
    again = (
        "--config",
        str(outcome.run_dir / "config.yaml"),
        "--ckpt_path",
        str(outcome.run_dir / "checkpoints/last.ckpt"),
    )
    tested = maxmargin("test", *again, "--trust-config")
    assert tested.status == 0, tested.err
    assert "test/accuracy" in tested.out


def test_a_module_that_logs_no_accuracy(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--model", f"{OWN}.LossAlone", *AUTO, "--trainer.max_epochs", "1", "--report", "true")
    assert outcome.status == 0, outcome.err
    assert "loss[/b]" in outcome.out
    assert outcome.summary["val/loss"] > 0
    assert (outcome.run_dir / "report.html").is_file()


def test_epochs_are_not_cut_short_by_the_default_of_steps(maxmargin: Any) -> None:
    words = ("--model", f"{OWN}.WithLoaders", *AUTO, "--trainer.max_epochs", "2", "--report", "false")
    outcome = maxmargin("fit", *words)
    assert outcome.status == 0, outcome.err
    config = yaml.safe_load((outcome.run_dir / "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (2, -1)


def test_fewer_samples_than_are_looked_at(maxmargin: Any) -> None:
    words = ("--model", f"{OWN}.WithLoaders", *AUTO, "--monitor.samples", "2", "--trainer.max_steps", "12")
    outcome = maxmargin("fit", *words, "--report", "true")
    assert outcome.status == 0, outcome.err
    assert len(json.loads((outcome.run_dir / "heads.json").read_text())["tokens"]) == 2
    assert (outcome.run_dir / "report.html").is_file()


REFUSED = {
    "no data": (["Classifier", *AUTO], "data: Classifier has no train_dataloader of its own; name a LightningDataM"),
    "no sources": (["WithLoaders", "--trust-config"], "monitor.sources: WithLoaders has no TokenSelector"),
    "no attention": (["Mean", *AUTO], "no attention"),
    "another word": (["WithLoaders", "--monitor.sources", "atuo", "--trust-config"], "expected 'auto', or what"),
    "no such layer": (["WithLoaders", *AUTO, "--monitor.layers", "layers.9"], "encoder.layers.1.self_attn"),
    "no such query": (["WithLoaders", *AUTO, "--monitor.query_token", "70"], "query_token"),
    "words of heads": (["WithLoaders", "--monitor.layers", "0", "--trust-config"], "monitor.sources"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_watched_is_one_line_and_leaves_nothing(case: str, maxmargin: Any, tmp_path: Path) -> None:
    (model, *words), message = REFUSED[case]
    outcome = maxmargin("fit", "--model", f"{OWN}.{model}", *words, "--trainer.max_steps", "3")
    assert outcome.status == 2, outcome.err
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_the_packages_own_models_still_need_data(maxmargin: Any) -> None:
    outcome = maxmargin("fit", "--model", "JointSelection")
    assert outcome.status == 2
    assert "data is missing" in outcome.error
