#!/usr/bin/env bash
# Trains on a SLURM cluster, one process per node with all its GPUs. From a folder that all nodes share:
#
#   sbatch --nodes=4 --time=24:00:00 launch/slurm.sh --config=configs/vpit_8b.py --workdir=runs/8b
#   launch/slurm.sh --dry_run --config=...     prints what the job would run
#
# Five minutes before its time is up, or when it is preempted, the job saves and queues itself again.
# Variables: PYTHON (python of the environment), METAMORPH_DIR (the repository, default: where sbatch was called).
#SBATCH --job-name=metamorph
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# SLURM runs a copy of this file from elsewhere, so common.sh is looked for where the job was submitted.
[[ -z ${SLURM_SUBMIT_DIR:-} ]] || cd "${METAMORPH_DIR:-$SLURM_SUBMIT_DIR}"
HERE=$(dirname "$0")
[[ -f $HERE/common.sh ]] || HERE=launch
source "$HERE/common.sh"
(($#)) || usage
EXIT_STOPPED=75

# The other steps of the job get SIGTERM: every process finishes its step, and all save the same one.
stop() {
  echo "$0: asked to stop; the run saves, then the job queues again"
  run scancel --signal=TERM "$SLURM_JOB_ID"
}
trap 'was_woken=1; stop' USR1 TERM

TRAIN=(srun --kill-on-bad-exit=0 --label "${PYTHON:-python}" -m metamorph_jax.train "$@")
if [[ $DRY_RUN ]]; then
  grep '^#SBATCH' "$HERE/slurm.sh"
  run "${TRAIN[@]}"
  echo "# exit code $EXIT_STOPPED (stopped and saved): scontrol requeue \$SLURM_JOB_ID"
  exit 0
fi
"${TRAIN[@]}" &
was_woken=1
while [[ $was_woken ]]; do # a signal ends `wait`, not the run
  was_woken= code=0
  wait $! || code=$?
done
if ((code == EXIT_STOPPED)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
