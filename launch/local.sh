#!/usr/bin/env bash
# Several processes of one run on this machine, as on a cluster: what works here works there.
#
#   launch/local.sh N [arguments of clipdg_jax.main]
#   launch/local.sh 2 --config=configs/mix.py --config.steps=20 --virtual_devices=4
#   launch/local.sh gpus --config=configs/mix.py:paper     one process for each GPU, which sees no other
#
# Shows process 0; the others write to files, of which the end is shown if one of them fails. The
# first failure ends all processes and is the exit status. Ctrl-C and TERM end all processes; after
# TERM they may save a checkpoint first, and the status is then 75: the same command goes on.
#
#   PYTHON   the interpreter; otherwise .venv's
#   GRACE    seconds to save it in; otherwise 60
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

count=${1:-}
gpus=()
if [[ $count == gpus ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
  else
    command -v nvidia-smi >/dev/null || fail "gpus: there is no nvidia-smi; give a number of processes"
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  count=${#gpus[@]}
fi
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "usage: launch/local.sh N|gpus [arguments of clipdg_jax.main]"
shift
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 403)) || fail "bash 4.3 or later is needed"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || fail "$python: not found; run \`make install\` first or set PYTHON"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
logs=$(mktemp -d "${TMPDIR:-/tmp}/clipdg-local.XXXXXX")

# Where Linux offers it, the kernel ends the processes even if this script is killed with -9.
guard=()
if command -v setpriv >/dev/null && setpriv --pdeathsig KILL true 2>/dev/null; then
  guard=(setpriv --pdeathsig KILL)
fi

pids=()
keep_logs=no
patience=5

# Ends what still runs: TERM, some seconds of grace, then KILL.
finish() {
  trap '' INT TERM HUP
  kill -TERM "${pids[@]}" 2>/dev/null || true
  for ((tenths = 10 * patience; tenths > 0; tenths--)); do
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
  saved=yes
  for pid in "${pids[@]}"; do
    status=0
    wait "$pid" 2>/dev/null || status=$?
    ((status == 75)) || saved=no
  done
  [[ $keep_logs == yes ]] || rm -rf "$logs"
  [[ $saved == no ]] || exit 75
}
trap finish EXIT
trap 'exit 130' INT
trap 'patience=${GRACE:-60}; exit 143' TERM HUP

for ((id = 0; id < count; id++)); do
  command=("$python" -m clipdg_jax.main --multihost "--coordinator=localhost:$port"
    "--num_processes=$count" "--process_id=$id" "$@")
  ((${#gpus[@]} == 0)) || command=(env "CUDA_VISIBLE_DEVICES=${gpus[id]}" "${command[@]}")
  if ((id == 0)); then
    ${guard[@]+"${guard[@]}"} "${command[@]}" </dev/null &
  else
    ${guard[@]+"${guard[@]}"} "${command[@]}" </dev/null >"$logs/$id.log" 2>&1 &
  fi
  pids+=("$!")
done

for ((left = count; left > 0; left--)); do
  status=0
  wait -n || status=$?
  ((status == 0)) && continue
  if ((status == 75)); then
    patience=${GRACE:-60}
    exit 75
  fi
  keep_logs=yes
  for ((id = 1; id < count; id++)); do
    echo "--- process $id, last lines of $logs/$id.log" >&2
    tail -n 5 "$logs/$id.log" >&2
  done
  exit "$status"
done
