# Sourced by the other scripts: finds Python 3.11-3.13 and makes .venv with the extras asked for.
#
#   source scripts/environment.sh; prepare_venv "data,test"

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${JAXPT_VENV:-$ROOT/.venv}
cd "$ROOT"

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.12 python3.11 python3.13 python3 python; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "No Python 3.11, 3.12 or 3.13 with venv was found. Install one (Debian: apt-get install python3-venv)," >&2
  echo "or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 1
}

# prepare_venv EXTRAS: installs the project and these extras, unless setup.cfg is as it was the last time.
prepare_venv() {
  local extras=$1 python stamp wanted
  if ! [ -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "making $VENV with $("$python" --version)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
  fi
  stamp=$VENV/.jaxpt-$(echo "$extras" | tr ',' '-')
  wanted=$(cat setup.cfg pyproject.toml | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    say "installing jaxpt${extras:+[$extras]} (one to three minutes the first time)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".${extras:+[$extras]}"
    echo "$wanted" >"$stamp"
  fi
}
