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
HERE=$(dirname "$0")
[[ -f $HERE/common.sh ]] || HERE=${METAMORPH_DIR:-${SLURM_SUBMIT_DIR:-.}}/launch
if [[ ! -f $HERE/common.sh ]]; then
  echo "$0: no $HERE/common.sh: call sbatch in the repository, or set METAMORPH_DIR to it" >&2
  exit 2
fi
source "$HERE/common.sh"
(($#)) || usage
EXIT_STOPPED=75
EXIT_TERM=143 # a process that was not yet far enough to save

# The other steps of the job get SIGTERM: every process finishes its step, and all save the same one.
# shellcheck disable=SC2317,SC2329 # called by traps
stop() {
  was_woken=1 was_asked=1
  echo "$0: asked to stop; the run saves, then the job queues again"
  scancel --signal=TERM "$SLURM_JOB_ID" || echo "$0: scancel failed; the run goes on" >&2
}
was_asked='' is_out_of_time=''
trap stop TERM
trap 'is_out_of_time=1; stop' USR1

TRAIN=(srun --kill-on-bad-exit=0 --label)
# Since 22.05, srun does not take this over from the job.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || TRAIN+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
TRAIN+=("${PYTHON:-python}" -m metamorph_jax.train "$@")
if [[ $DRY_RUN ]]; then
  grep '^#SBATCH' "$SCRIPT"
  run "${TRAIN[@]}"
  echo "# exit code $EXIT_STOPPED (stopped and saved): scontrol requeue \$SLURM_JOB_ID"
  exit 0
fi
"${TRAIN[@]}" &
was_woken=1
while [[ $was_woken ]]; do # a signal ends `wait`, not the run
  was_woken='' code=0
  wait $! || code=$?
done

# Whether SLURM is ending the job already, because somebody cancelled it or to queue it again itself.
is_ending() {
  [[ ! $is_out_of_time && $(scontrol show job "$SLURM_JOB_ID") =~ JobState=(COMPLETING|CANCELLED) ]]
}

trap '' USR1 TERM # queueing again ends this script with SIGTERM, too
if ((code == EXIT_STOPPED)) || [[ $was_asked && $code == "$EXIT_TERM" ]]; then
  if is_ending; then
    echo "$0: SLURM is ending the job; it is left to that"
  else
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
