#!/bin/bash
# Installs what the tests need and runs them all: lint, types, import contracts, unit tests on every Python found,
# tests that need root, and the integration suite with real containers. Run as root on Debian 12 or Ubuntu 24.04.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "test: run me as root (sudo contrib/test.sh)" >&2; exit 1; }

ENGINE_TESTS=1 contrib/setup.sh
command -v docker >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io >/dev/null
python=.venv/bin/python
$python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt tox
# pyenv's shims answer only for the versions it is told: show tox the interpreters themselves
if command -v pyenv >/dev/null; then
    for directory in "$(pyenv root)"/versions/3.1[123].*/bin; do [ -d "$directory" ] && PATH="$directory:$PATH"; done
fi
# a test of real kernels and clocks that fails is tried once more, and named in the summary as one that was
export PYTEST_ADDOPTS="--reruns 1 --reruns-delay 2"
$python -m tox run -e lint,type,py311,py312,py313,solo
exec $python -m tox run -e root,integration
