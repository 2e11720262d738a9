#!/usr/bin/env bash
# All six kinds of samples on the world of shapes: tokenizer, training, report. Runs from the repository's root.
#
#   launch/shapes.sh                     measured on the held-out scenes
#   HOLDOUT=validation launch/shapes.sh  on the validation scenes, to choose settings
set -euo pipefail
PYTHON=${PYTHON:-python}
HOLDOUT=${HOLDOUT:-heldout}
DATA=${DATA:-data/shapes}
RUN=${RUN:-runs/shapes}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

$PYTHON -m metamorph_jax.data.shapes --out="$DATA"
$PYTHON -m metamorph_jax.train --config="configs/shapes.py:$DATA" --workdir="$RUN"
$PYTHON -m metamorph_jax.report --run="$RUN" --data="shapes:$HOLDOUT"
