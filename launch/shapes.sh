#!/usr/bin/env bash
# All six kinds of samples on the world of shapes: tokenizer, training, report. Runs from the repository's root.
set -euo pipefail
PYTHON=${PYTHON:-python}
DATA=${DATA:-data/shapes}
RUN=${RUN:-runs/shapes}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

$PYTHON -m metamorph_jax.data.shapes --out="$DATA"
$PYTHON -m metamorph_jax.train --config="configs/shapes.py:$DATA" --workdir="$RUN"
$PYTHON -m metamorph_jax.report --run="$RUN" --data=shapes
