#!/usr/bin/env bash
# Trains on any cloud through SkyPilot (skypilot.yaml); the arguments are those of metamorph_jax.train.
#
#   launch/skypilot.sh --config=configs/vpit_8b.py --workdir=/shared/runs/8b
#   NODES=4 ACCELERATORS=H200:8 launch/skypilot.sh --dry_run --config=...     prints the command
#
# NAME (default metamorph) is the managed job: after a preemption, a stop, or three errors at most, SkyPilot starts it
# anew, and it resumes.
source "$(dirname "$0")/common.sh"
(($#)) || usage

arguments=$(printf '%q ' "$@")
run sky jobs launch --yes --name="${NAME:-metamorph}" --num-nodes="${NODES:-2}" \
  --gpus="${ACCELERATORS:-H100:8}" --env="TRAIN_ARGUMENTS=${arguments% }" launch/skypilot.yaml
