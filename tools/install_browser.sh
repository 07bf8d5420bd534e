#!/bin/sh
# Find or install a Chromium for the tests of the labelling page; those are skipped without one.
#
#   tools/install_browser.sh [VENV]
#
# Always succeeds, and is instant where a browser is there already. In turn: one on the PATH;
# Debian's package, as root or where sudo asks for no password; Playwright's own, into its cache.
set -u

venv=${1:-.venv}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

present() {
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    # Ubuntu's chromium-browser may be a stub that only names the snap to install: run it to know.
    "$name" --version >/dev/null 2>&1 && return 0
  done
  own=$("$venv/bin/python" -c '
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    print(p.chromium.executable_path)' 2>/dev/null) && [ -x "$own" ]
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Where there is no network, give up soon.
apt() {
  as_root env DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -q -y \
    -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 -o Acquire::Retries=1 \
    -o DPkg::Lock::Timeout=60 "$@" >>"$log" 2>&1
}

debian() {
  command -v apt-get >/dev/null || return 1
  as_root true 2>/dev/null || return 1
  echo "Installing Chromium for the tests of the labelling page (once)"
  apt install --no-install-recommends chromium ||
    { apt update && apt install --no-install-recommends chromium; }
}

playwright() {
  timeout 300 "$venv/bin/python" -m playwright install chromium >>"$log" 2>&1
}

present && exit 0
debian && present && exit 0
playwright && present && exit 0
reason=$(grep -i -m 1 error "$log" || tail -n 1 "$log")
echo "No Chromium, and none could be installed; the browser tests will be skipped ($reason)"
exit 0
