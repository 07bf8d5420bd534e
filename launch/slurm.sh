#!/usr/bin/env bash
# One run on SLURM, one task for each GPU; or, as an array, the runs of a list, one each.
#
#   sbatch launch/slurm.sh --config=configs/paper.py:natural=44M,rendition=13M
#   sbatch --nodes=2 launch/slurm.sh --config=configs/mix.py:paper
#
#   python -m clipdg_jax.main --config=configs/sweep.py:paper --config.print_array=True > runs.txt
#   RUNS=runs.txt sbatch --array=0-25 launch/slurm.sh
#
# Two minutes before the time limit, and when the job is pre-empted, the tasks get TERM, save a
# checkpoint and end with status 75, on which the job is put into the queue again: it goes on from
# there. Submit it from the repository's root, on a file system that all nodes share.
#
#   PYTHON   the interpreter; otherwise .venv's
#   RUNS     a list with one run's arguments on each line; array task i takes line i, from 0
#
#SBATCH --job-name=clipdg_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || fail "$python: not found; submit from the repository's root"

arguments=("$@")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  [[ -r ${RUNS:-} ]] || fail "RUNS=${RUNS:-}: is no list of runs; make one with --config.print_array=True"
  line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$RUNS")
  [[ -n $line ]] || fail "$RUNS: has no line $((SLURM_ARRAY_TASK_ID + 1)); give fewer array tasks"
  mapfile -t own < <(xargs printf '%s\n' <<<"$line")
  arguments=("${own[@]}" "$@")
fi
((${#arguments[@]})) || fail "usage: sbatch launch/slurm.sh [arguments of clipdg_jax.main]"

# SLURM may send TERM to this script as well; it waits for the tasks, which know what to do.
trap : TERM
status=0
srun --kill-on-bad-exit=1 "$python" -m clipdg_jax.main --multihost "${arguments[@]}" &
while kill -0 "$!" 2>/dev/null; do
  wait "$!" || true # TERM ends the wait, not the tasks.
done
wait "$!" || status=$?
if ((status == 75)); then
  echo "stopped and saved; in the queue again"
  scontrol requeue "$SLURM_JOB_ID" || true # Unless its pre-emption has done that.
fi
exit "$status"
