#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU VM, through gcloud; the arguments are those of metamorph_jax.train.
#
#   TPU=my-pod ZONE=us-central1-a launch/tpu_vm.sh --config=configs/vpit_8b.py --workdir=/shared/runs/8b
#   launch/tpu_vm.sh --dry_run --config=...    prints the command
#
# Each host has the repository in DIR (default: metamorph_jax), installed into .venv with jax[tpu], and sees
# --workdir on a disk that all share. The output of host N goes to train.log in its DIR and to this terminal.
# If this terminal goes away, the run goes on; SIGTERM to a process on any host makes all save and leave.
source "$(dirname "$0")/common.sh"
(($#)) || usage
require TPU "name of the TPU VM" ZONE "its zone"

# Only the metadata server of the TPU knows how many hosts there are: jax asks it.
arguments=$(printf '%q ' "$@")
folder=$(printf '%q' "${DIR:-metamorph_jax}")
remote="cd $folder && JAX_NUM_PROCESSES=auto .venv/bin/python -m metamorph_jax.train $arguments"
run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="set -o pipefail; ($remote) 2>&1 | tee -p -a $folder/train.log" # -p: also without the terminal
