#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice, from a machine that has gcloud.
#
#   launch/tpu_vm.sh NAME ZONE [arguments of clipdg_jax.main]
#   launch/tpu_vm.sh my-v5e-32 us-central1-a --config=configs/mix.py:paper --workdir=/mnt/runs/paper
#
# Each host has the repository in ~/clipdg_jax with `EXTRAS=tpu make install` done, the data (see
# docs/staging.md), and a workdir that all hosts share, such as a Filestore volume. Hosts that are
# asked to stop save a checkpoint and end with status 75; the run is then begun again, until it ends
# otherwise. A slice that was taken away has to be made again before the same command goes on.
#
#   DIRECTORY   of the repository on the hosts; otherwise ~/clipdg_jax
set -euo pipefail

fail() {
  echo "error: $1" >&2
  exit 2
}

(($# >= 3)) || fail "usage: launch/tpu_vm.sh NAME ZONE [arguments of clipdg_jax.main]"
command -v gcloud >/dev/null || fail "gcloud: not found; install the Google Cloud CLI"
name=$1
zone=$2
shift 2

printf -v arguments ' %q' "$@"
directory=${DIRECTORY:-clipdg_jax}
run=".venv/bin/python -m clipdg_jax.main --multihost$arguments"
again="status=75; while [ \$status = 75 ]; do status=0; $run || status=\$?; done; exit \$status"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd $directory && $again"
