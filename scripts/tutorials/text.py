"""From a CSV file to the words that decided: fit, test, read, and measure the rationales beside baselines."""

# %% [markdown]
# # From a CSV file to a rationale
#
# A text classifier that shows which words decided. The encoder stays as it is; attention with one prompt p and a
# linear head are trained on its hidden states. Here on 600 Rotten Tomatoes sentences that come with the package, in
# less than a minute on one CPU thread. Put your own file in place of `reviews.csv`: it needs the columns `text` and
# `label`.

# %%
from lightning_maxmargin import TextData, TextSelection, TextSelector
from lightning_maxmargin.callbacks.text_monitor import TextMonitor
from lightning_maxmargin.callbacks.text_output import save_whole
from lightning_maxmargin.cli import main
from lightning_maxmargin.text.planted import review_sentences
import csv
import json
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch

pl.seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The data
#
# Two files, of training and of test sentences.

# %%
reviews = review_sentences()
order = torch.randperm(len(reviews.sentences)).tolist()
for name, rows in {"reviews.csv": order[:600], "test.csv": order[600:800]}.items():
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([reviews.sentences[i], "good" if reviews.labels[i] > 0 else "bad"] for i in rows)
print("".join((folder / "reviews.csv").open(encoding="utf-8").readlines()[:3]))

data = TextData(train=str(folder / "reviews.csv"), test=str(folder / "test.csv"), seed=0)
data.setup("fit")
data

# %% [markdown]
# A tenth of the training file is kept for validation, by label. The documents were cut into word pieces and encoded
# once; the hidden states lie in the user's cache, so that the next run starts at once.
#
# ## Fit and test
#
# Any callback and any option of the trainer works. `TextMonitor` looks after each epoch at how stable the selections
# are.

# %%
model = TextSelection()
monitor = TextMonitor(samples=200, budget=1.0)
trainer = pl.Trainer(
    max_epochs=10, accelerator="cpu", callbacks=[monitor], default_root_dir=folder, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, datamodule=data)
tested = trainer.test(model, datamodule=data, verbose=False)[0]
print(f"test accuracy {tested['test/accuracy']:.3f} on {len(data.splits['test'])} sentences")
monitor

# %% [markdown]
# The *lead* of a document is the distance of the heaviest word to the second, over the norm of p: how much has to
# change before another word is selected. That the attention reaches a small share of its SVM's margin is usual: the
# hard-margin theory does not describe training on real text, and a larger margin made nothing better where we tried
# it.
#
# ## The words that decided
#
# Of training documents, as they are read now: the darker a word the more of the attention it has, blue for the
# predicted label and orange against it.

# %%
monitor.show(samples=5)

# %% [markdown]
# Saved as Hugging Face keeps models, read back, and asked. A reading has a label with its probability, the words with
# weight and evidence, lead and entropy.

# %%
run = folder / "run"
save_whole(model, data, run / "model")
selector = TextSelector.from_pretrained(run / "model")
good = selector("a film of rare charm , warm and very funny .")
good

# %%
bad = selector("too long , too loud , and never funny .")
bad

# %% [markdown]
# The same as numbers: weights sum to 1, and evidence is what a word says for the label, less the mean over the labels.

# %%
for word in sorted(bad.words, key=lambda word: -word.weight)[:4]:
    print(f"{word.text:8} weight {word.weight:.3f}, evidence {word.evidence:+.2f}")
print(f"weights sum to {sum(word.weight for word in bad.words):.6f}")
print(bad)
assert (good.label, bad.label) == ("good", "bad")

# %% [markdown]
# ## Against baselines
#
# `maxmargin evaluate` measures a finished run on its test documents: its accuracy beside mean pooling and TF-IDF, and
# how faithful its words are, beside gradients and random words. It reads where the data came from in `config.yaml`,
# which `maxmargin fit` writes; after a fit in Python these lines do.

# %%
sources = {"train": str(folder / "reviews.csv"), "test": str(folder / "test.csv"), "seed": 0}
config = {"data": {"class_path": "lightning_maxmargin.TextData", "init_args": sources}}
(run / "config.yaml").write_text(json.dumps(config))
status = main(["evaluate", str(run), "--documents", "20", "--output", str(folder / "evaluated.json")])

# %% [markdown]
# | number | what it tells |
# |---|---|
# | accuracy | of each model on the same sentences, with an interval: those that overlap tell none apart |
# | comprehensiveness | how much the prediction loses without the words of the rationale: higher is better |
# | sufficiency | how much it loses with these words alone: lower is better |
# | norm. | the same between the worst and the best order of the words, from 0 to 1: only these compare models |
#
# What a rationale is worth is its distance from random words. With `rationale` spans in the file there is agreement
# with people as well.

# %%
rows = {row["method"]: row for row in json.loads((folder / "evaluated.json").read_text())["rows"]}
own, chance = (rows[name]["comprehensiveness/normalised"] for name in ("selector s y v'x", "random"))
print(f"comprehensiveness of the selector's words {own:.2f}, of random ones {chance:.2f}")
assert status == 0
assert own > chance
