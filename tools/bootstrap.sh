#!/bin/sh
# Create or update a virtual environment with this project and what it needs.
#
#   tools/bootstrap.sh DIRECTORY
#
#   PYTHON   the interpreter to use; otherwise the first of python3, python3.13, python3.12 and
#            python3.11 that runs and is version 3.11, 3.12 or 3.13
#   EXTRAS   extras of pyproject.toml to install; otherwise `test`, and `cuda12` where nvidia-smi
#            finds a GPU
set -eu

venv=${1:?the directory to install into}
cd "$(dirname "$0")/.."

fail() {
  echo "error: $1" >&2
  exit 1
}

# Version managers leave launchers on the PATH for versions they do not have: run it to know.
supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

python=${PYTHON:-}
if [ -n "$python" ]; then
  supported "$python" || fail "PYTHON=$python is not a working Python 3.11, 3.12 or 3.13"
else
  for candidate in python3 python3.13 python3.12 python3.11; do
    if supported "$candidate"; then
      python=$candidate
      break
    fi
  done
  [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12"
fi

version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

if [ "$(version "$venv/bin/python")" != "$(version "$python")" ]; then
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python cannot create virtual environments; on Debian or Ubuntu: apt install python$(version "$python")-venv"
  echo "Creating $venv with Python $(version "$python")"
  "$python" -m venv --clear "$venv"
fi

extras=${EXTRAS:-}
if [ -z "$extras" ]; then
  extras="test"
  if nvidia-smi >/dev/null 2>&1; then
    extras="test,cuda12"
  fi
fi

echo "Installing into $venv ($extras); this takes a minute or two the first time"
# Byte-compiling every file of every dependency takes longer than compiling what is imported. That
# is done here, once: where PYTHONDONTWRITEBYTECODE is set, each process would do it for itself.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[$extras]"
env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c '
import importlib, pkgutil, clipdg_jax
for module in pkgutil.walk_packages(clipdg_jax.__path__, "clipdg_jax."):
    importlib.import_module(module.name)
'
