#!/usr/bin/env bash
# The digits demo, command by command: data, training, pictures, report. Runs from the repository's root.
#
#   launch/demo.sh                     measured on the 360 held-out scans
#   HOLDOUT=validation launch/demo.sh  on a validation part of the training scans, to choose settings
set -euo pipefail
PYTHON=${PYTHON:-python}
HOLDOUT=${HOLDOUT:-test}
DATA=${DATA:-data/digits}
RUN=${RUN:-runs/digits}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

$PYTHON -m metamorph_jax.data.digits --out="$DATA" --holdout="$HOLDOUT"
$PYTHON -m metamorph_jax.train --config="configs/digits.py:$DATA" --workdir="$RUN"
$PYTHON -m metamorph_jax.cache_features --checkpoint="$RUN" \
  --jsonl="$DATA/captions.jsonl" --image_root="$DATA" --out="$RUN/features.safetensors"
$PYTHON -m metamorph_jax.visualizer.train --config=configs/visualizer_digits.py \
  --features="$RUN/features.safetensors" --image_root="$DATA" --out="$RUN/visualizer"
$PYTHON -m metamorph_jax.visualizer.reconstruct --checkpoint="$RUN" \
  --records="$DATA/heldout_generation.jsonl" --image_root="$DATA"
$PYTHON -m metamorph_jax.report --run="$RUN" --data="$DATA"
