#!/bin/bash
# From a fresh Debian 12 or Ubuntu 24.04 to a running container: installs the engine, starts its daemon, makes a
# Debian image from the distribution's own packages and runs a container from it. Run as root; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "quickstart: run me as root (sudo contrib/quickstart.sh)" >&2; exit 1; }

contrib/setup.sh
command -v mmdebstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null
ln -sf "$PWD/.venv/bin/engine" "$PWD/.venv/bin/engined" /usr/local/bin/

if ! engine version >/dev/null 2>&1; then
    mkdir -p /var/log
    setsid engined >>/var/log/engined.log 2>&1 </dev/null &
    for _ in $(seq 100); do engine version >/dev/null 2>&1 && break; sleep 0.1; done
fi
engine version >/dev/null || { tail -5 /var/log/engined.log >&2; exit 1; }

if ! engine image inspect debian >/dev/null 2>&1; then
    echo "Making a Debian image with mmdebstrap (about a minute)..."
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mmdebstrap --quiet --variant=minbase --format=tar "$suite" - | engine import -c 'CMD ["bash"]' - debian >/dev/null
fi

set -x
engine run --rm debian cat /etc/os-release
engine images
