"""What every data module of this package offers to the model, the monitors and the command line."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import Tensor

from lightning_maxmargin.core import Sequences, check_sequences
from lightning_maxmargin.data.sampling import BatchLoader, Reading
from lightning_maxmargin.errors import InputError, check_seed

#: Batches whose keys have fewer numbers than this are made where they are used. Not measured: small enough for the
#: experiments of the papers, which so have no second thread, and far below the batches of a text.
PREFETCH_NUMBERS = 2**16


class SequenceData(pl.LightningDataModule):
    """Labelled token sequences, in splits ``train``, ``val`` and ``test`` (the last two where there are any).

    A subclass fills :meth:`load`. Every process holds the whole data, in memory or mapped from a file, and trains on
    its own part of each batch. Minibatches are copied, and converted to the dtype of training, while earlier ones are
    trained on.

    Args:
        batch_size: sequences per optimisation step over all processes; None is the full batch.
        shuffle: a new order every epoch (minibatches alone).
        seed: of the order, and of whatever the subclass draws.
        num_workers: processes that make the minibatches; 0 leaves it to a thread. The batches are the same.
        prefetch: minibatches made ahead; 0 makes each in the training thread.
        pin_memory: whether they lie in page-locked memory; None where the run is on a GPU.

    Raises:
        InputError: batch_size is not positive, or num_workers or prefetch negative.
    """

    num_workers = 0
    prefetch = 2
    pin_memory: bool | None = None

    def __init__(
        self,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise InputError(f"data.batch_size: {batch_size}; a positive number, or null for the full batch")
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, check_seed(seed, "data.seed")
        Reading(num_workers, prefetch)  # refuses what is wrong
        self.num_workers, self.prefetch, self.pin_memory = num_workers, prefetch, pin_memory
        self._splits: dict[str, Sequences] | None = None
        self.num_classes = 2
        self.head: Tensor | None = None  # the true head, where the data come with one

    def load(self) -> dict[str, Sequences]:
        """All splits; ``train`` must be among them."""
        raise NotImplementedError

    @property
    def splits(self) -> dict[str, Sequences]:
        """Loaded and checked on first use."""
        if getattr(self, "_splits", None) is None:
            self._splits = {k: check_sequences(s, self.num_classes, f"data ({k})") for k, s in self._loaded().items()}
        assert self._splits is not None
        return self._splits

    def _loaded(self) -> dict[str, Sequences]:
        """What a subclass loads, if it is one."""
        name = type(self).__name__
        if type(self).load is SequenceData.load:
            raise InputError(f"data: {name} lacks load(): return {{'train': Sequences(...)}}")
        if not hasattr(self, "num_classes"):
            raise InputError(f"data: {name}.__init__ lacks super().__init__(batch_size, shuffle, seed)")
        if self.num_classes < 2:
            raise InputError(f"data.num_classes: {self.num_classes}; 2 for labels in {{-1, 1}}, or more")
        found = self.load()
        if not isinstance(found, dict) or "train" not in found:
            what = ", ".join(map(repr, found)) if isinstance(found, dict) else f"a {type(found).__name__}"
            raise InputError(f"data: {name}.load returned {what}; expected a dictionary with 'train' in it")
        for split, sequences in found.items():
            if not isinstance(sequences, Sequences):
                raise InputError(f"data: {name}.load: {split!r} is a {type(sequences).__name__}; expected Sequences")
        return found

    def sequences(self, split: str) -> Sequences | None:
        """The whole split, or None where there is none.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
        """
        return self.splits.get(split)

    def has_split(self, split: str) -> bool:
        """Whether there is such a split.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
        """
        return split in self.splits

    def texts(self, split: str) -> list[list[str]] | None:
        """The words or sentences behind the tokens, where the data are text.

        Args:
            split: ``train``, ``val``, ``test`` or ``predict``.
        """
        return None

    def _repr_html_(self) -> str:
        from lightning_maxmargin.data.show import data_html

        return data_html(self)

    @property
    def dim(self) -> int:
        """d, the size of a key of the training split."""
        return self.splits["train"].keys.shape[2]

    @property
    def value_dim(self) -> int:
        """dv, the size of a value."""
        return self.splits["train"].values.shape[2]

    @property
    def query_dim(self) -> int | None:
        """dq, the size of a query; None where the data have none."""
        queries = self.splits["train"].queries
        return None if queries is None else queries.shape[1]

    def train_dataloader(self) -> BatchLoader:
        data = self.splits["train"]
        # What equal keys there are is looked up once, here, and goes with every minibatch.
        data.copies()
        return self._loader(data, self.shuffle)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        return self._evaluation("val")

    def test_dataloader(self) -> BatchLoader | list[BatchLoader]:
        return self._evaluation("test")

    def predict_dataloader(self) -> BatchLoader | list[BatchLoader]:
        return self._evaluation("test" if "test" in self.splits else "train")

    def _evaluation(self, split: str) -> BatchLoader | list[BatchLoader]:
        data = self.splits.get(split)
        return [] if data is None else self._loader(data, shuffle=False)

    def _loader(self, data: Sequences, shuffle: bool) -> BatchLoader:
        if data.mapped and self.batch_size is None:
            raise InputError(
                "data.batch_size: the arrays stay in their file, and the full batch would read them all into memory; "
                "give a batch_size"
            )
        numbers = data.keys[0].numel() * min(self.batch_size or len(data), len(data))
        prefetch = self.prefetch if self.num_workers or numbers >= PREFETCH_NUMBERS else 0
        trainer = self.trainer
        module = None if trainer is None else trainer.lightning_module
        pin = trainer is not None and trainer.strategy.root_device.type == "cuda"
        reading = Reading(
            self.num_workers,
            prefetch,
            pin if self.pin_memory is None else self.pin_memory,
            getattr(module, "batch_dtype", None),
        )
        return BatchLoader(data, self.batch_size, shuffle, self.seed, reading)
