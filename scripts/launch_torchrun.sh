#!/usr/bin/env bash
# Starts maxmargin on all GPUs of this machine, or on PROCESSES of its CPU, or on several machines, by torchrun.
#
#   scripts/launch_torchrun.sh fit --config text/finetune --config trainer/gpus --data.train reviews.csv
#   PROCESSES=2 scripts/launch_torchrun.sh fit --config joint/relaxed --config trainer/ddp
#   NODES=2 HEAD=host0:29400 scripts/launch_torchrun.sh fit ... --trainer.num_nodes 2    # the same line on each machine
#
# All processes take the run directory that the first one chooses, runs/NAME-DATE-ID; the machines share the file system.
set -euo pipefail
gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
processes="${PROCESSES:-$((gpus > 0 ? gpus : 1))}"
meet=(--standalone)
if [ "${NODES:-1}" -gt 1 ]; then
    meet=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-endpoint "${HEAD:?HEAD=host:port of the first machine}" --rdzv-id "${RUN_ID:-maxmargin}")
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun "${meet[@]}" --nproc-per-node "$processes" -m lightning_maxmargin "$@" --trainer.devices "$processes"
