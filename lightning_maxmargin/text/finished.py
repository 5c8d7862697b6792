"""A finished run on text, to be measured again: its model, its documents, and what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_maxmargin.atomic import refuse_existing
from lightning_maxmargin.errors import InputError, check_seed
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.pretrained import PretrainedEncoder, word_pieces
from lightning_maxmargin.text.records import Documents, read_documents, read_splits, split_of
from lightning_maxmargin.text.saving import load_model
from lightning_maxmargin.text.splits import label_numbers

if TYPE_CHECKING:
    from lightning_maxmargin.text.data import TextData

COLUMNS = ("text", "label", "rationale")


@dataclass(frozen=True)
class FinishedRun:
    """What a run left.

    Attributes:
        folder: its directory.
        model: in evaluation mode.
        tokenizer: the fast one that was saved with it.
        settings: the arguments of its data; empty without a ``config.yaml``.
        seed: of ``--seed_everything``.
    """

    folder: Path
    model: MaxMarginForSequenceClassification
    tokenizer: Any
    settings: dict[str, Any]
    seed: int

    @property
    def names(self) -> list[str]:
        """Of the labels, in the order of the logits."""
        config: Any = self.model.config
        return [config.id2label[k] for k in range(config.num_labels)]

    def source(self, data: str | None = None) -> str:
        """Where test documents come from: ``data``, else the run's test file, else the source it was trained on.

        Raises:
            InputError: the run names none of them.
        """
        found = data or self.settings.get("test") or self.settings.get("train")
        if found is None:
            raise InputError(f"{self.folder}: its config.yaml names no test file; give one with --data")
        return str(found)

    def test_documents(self, data: str | None = None) -> Documents:
        """The labelled documents to measure on.

        Raises:
            InputError: there are none, or a label is not one of the model's.
        """
        source = self.source(data)
        columns: dict[str, Any] = {name: self.settings.get(name) or name for name in COLUMNS}
        cache = self.settings.get("cache_dir")
        found: Documents | None
        try:
            if data or self.settings.get("test"):
                found = read_documents(source, split=split_of(source, "test"), cache_dir=cache, **columns)
            else:
                found = read_splits(source, cache_dir=cache, **columns).get("test")
        except InputError as error:
            if Path(source).exists():
                raise
            raise InputError(f"{error}; name the test documents with --data") from error
        if found is None:
            raise InputError(f"{self.folder}: the run had no test file; give one with --data")
        return found

    def split(self, documents: Documents) -> Split:
        """These documents in the units that rationales are judged in: words, or sentences where those are selected.

        Raises:
            InputError: a label is not one of the model's.
        """
        config = self.model.config
        units = "sentences" if config.units == "sentences" else "words"
        pieces = word_pieces(self.tokenizer, documents.texts, config.max_pieces)
        padding = self.tokenizer.pad_token_id or 0
        return Split(
            documents=documents, pieces=pieces, units=units, labels=self._numbers(documents), hidden=None,
            key_layer=config.key_layer, value_layer=config.value_layer, padding=padding,
        )  # fmt: skip

    def _numbers(self, documents: Documents) -> Any:
        import torch

        return torch.tensor(label_numbers(documents.labels or [], self.names, documents.source))

    def training_data(self) -> TextData:
        """Training and validation documents as the run had them, with the hidden states of the encoder as it came.

        Raises:
            InputError: they are no longer where they were.
        """
        from lightning_maxmargin.text.data import TextData

        if self.settings.get("train") is None:
            raise InputError(f"{self.folder}: its config.yaml names no training file; use --baselines none")
        settings = {**self.settings, "test": None, "predict": None}
        if settings.get("seed") is None:
            settings["seed"] = self.seed
        try:
            data = TextData(**settings)
            data.setup("fit")
        except InputError as error:
            raise InputError(
                f"{error} (the baselines are trained on the run's data; or use --baselines none)"
            ) from error
        if data.names != self.names:
            raise InputError(
                f"{settings['train']}: its labels are {', '.join(data.names[:5])}, those of the model "
                f"{', '.join(self.names[:5])}; it is no longer what the run was trained on"
            )
        return data


def read_run(folder: str | Path) -> FinishedRun:
    """The run of this directory, as ``maxmargin fit`` leaves it.

    Raises:
        InputError: there is none, or it has no ``model/``.
    """
    folder = Path(folder)
    if not (folder / "model").is_dir():
        raise InputError(f"{folder} holds no model/; name the directory of a finished run on text")
    model = load_model(folder / "model").eval().requires_grad_(False)
    tokenizer = PretrainedEncoder(str(folder / "model"), folder / "model").tokenizer
    config = _config(folder / "config.yaml")
    data = config.get("data") or {}
    settings = data.get("init_args", {key: x for key, x in data.items() if key != "class_path"})
    seed = config.get("seed_everything")
    return FinishedRun(folder, model, tokenizer, settings or {}, int(seed or 0))


def check_options(seed: int, output: str | None) -> None:
    """What ``evaluate`` and ``compare`` have in common.

    Raises:
        InputError: a seed that is none, or an output file that is there already, or whose folder cannot be made.
    """
    check_seed(seed, "--seed")
    if output is not None:
        refuse_existing(Path(output))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:  # also of a date that is none
        raise InputError(f"{path}: no YAML that can be read ({str(error).splitlines()[0]})") from error
    return found if isinstance(found, dict) else {}
