#!/bin/sh
# What needs a kernel with 802.1Q and ipvlan: run inside the VM lab, which has both.
#   vmlab run --cpus 1 --share . --share PREFIX-OF-PYTHON -- sh integration/vm/networks.sh
set -eu
cd "$(dirname "$0")/../.."
export PYTHONDONTWRITEBYTECODE=1
python=.venv/bin/python
ip link add probe0 type dummy
ip link add link probe0 name probe0.5 type vlan id 5
ip link delete probe0
$python -m pytest -q -p no:cacheprovider -rs plugins/network-macvlan plugins/network-ipvlan "$@"
$python -m pytest -q -p no:cacheprovider -rs integration/test_macvlan.py -k engine
