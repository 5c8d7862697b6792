#!/usr/bin/env bash
# From nothing to two reports: a text classifier that shows its words, and the papers' relaxed joint example.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/environment.sh reproduce
.venv/bin/maxmargin fit --config configs/text/reviews.yaml
.venv/bin/maxmargin fit --config configs/joint/relaxed.yaml
