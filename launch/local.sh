#!/usr/bin/env bash
# Several processes of one run on this machine, as on a cluster: what works here works there.
#
#   launch/local.sh N [arguments of clipdg_jax.main]
#   launch/local.sh 2 --config=configs/mix.py --config.steps=20 --virtual_devices=4
#
# Shows process 0; the others write to files, of which the end is shown if one of them fails. The
# first failure ends all processes and is the exit status. Ctrl-C and TERM end all processes.
#
#   PYTHON   the interpreter; otherwise .venv's
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "usage: launch/local.sh N [arguments of clipdg_jax.main]"
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

# Ends what still runs: TERM, five seconds of grace, then KILL.
finish() {
  trap '' INT TERM HUP
  kill -TERM "${pids[@]}" 2>/dev/null || true
  for _ in {1..50}; do
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  [[ $keep_logs == yes ]] || rm -rf "$logs"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

for ((id = 0; id < count; id++)); do
  command=("$python" -m clipdg_jax.main --multihost "--coordinator=localhost:$port"
    "--num_processes=$count" "--process_id=$id" "$@")
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
  keep_logs=yes
  for ((id = 1; id < count; id++)); do
    echo "--- process $id, last lines of $logs/$id.log" >&2
    tail -n 5 "$logs/$id.log" >&2
  done
  exit "$status"
done
