#!/usr/bin/env bash
# From nothing to two reports: the papers' relaxed joint example, and real text. Ends with a table and report.html each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/environment.sh reproduce
.venv/bin/maxmargin fit --config configs/joint/relaxed.yaml
.venv/bin/maxmargin fit --config configs/text/planted.yaml
