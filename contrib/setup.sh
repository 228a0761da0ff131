#!/bin/bash
# Installs what the engine needs from the distribution, and the engine itself into a virtual environment.
#   contrib/setup.sh [DIRECTORY]      default: .venv in the checkout
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(runc nftables iproute2 ca-certificates python3 python3-venv busybox-static)
test_packages=(crun mmdebstrap docker-registry skopeo iptables uidmap)
if [ "${ENGINE_TESTS:-}" ]; then packages+=("${test_packages[@]}"); fi
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
python=$(command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
directory=${1:-.venv}
[ -x "$directory/bin/python" ] || "$python" -m venv "$directory"
"$directory/bin/python" contrib/install.py
