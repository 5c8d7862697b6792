"""A classifier of film-review sentences that shows which words decided, in plain Lightning."""

# %% [markdown]
# # Fine-tune a text classifier that shows its words
#
# 600 Rotten Tomatoes sentences from a package, a frozen MiniLM, half a minute on one CPU thread.
# Put your own file in place of `reviews.csv`: it needs the columns `text` and `label`.

# %%
import csv
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch

from lightning_maxmargin import TextData, TextSelection, TextSelector
from lightning_maxmargin.callbacks.text_monitor import TextMonitor
from lightning_maxmargin.callbacks.text_output import save_whole
from lightning_maxmargin.text.planted import review_sentences

pl.seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# The data: a training file and a test file.

# %%
reviews = review_sentences()
order = torch.randperm(len(reviews.sentences)).tolist()
for name, rows in {"reviews.csv": order[:600], "test.csv": order[600:800]}.items():
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([reviews.sentences[i], "good" if reviews.labels[i] > 0 else "bad"] for i in rows)

data = TextData(train=str(folder / "reviews.csv"), test=str(folder / "test.csv"), seed=0)

# %% [markdown]
# The model: attention with one prompt `p` and a linear head on layer 4 of 6. Any callback and any option of the trainer
# works; the monitor logs after each epoch how stable the selections are (the median lead).

# %%
model = TextSelection()
monitor = TextMonitor(samples=200)
trainer = pl.Trainer(
    max_epochs=10, accelerator="cpu", callbacks=[monitor], default_root_dir=folder, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, datamodule=data)
accuracy = trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"]
print(f"test accuracy {accuracy:.3f}, median lead {monitor.last['margin/median_lead']:.3f}")

# %% [markdown]
# Save it as Hugging Face keeps models, read it back, and ask.

# %%
save_whole(model, data, folder / "model")
selector = TextSelector.from_pretrained(folder / "model")
for reading in selector(["a film of rare charm .", "too long , too loud , and never funny ."]):
    print(reading)
    print(f"  lead {reading.lead:.2f} (is the selection stable), entropy {reading.entropy:.2f} (how few words decided)")
print(f"saved in {folder / 'model'}")
