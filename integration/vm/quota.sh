#!/bin/sh
# The limits of the local volume driver, in a VM whose kernel has project quotas (Debian's own; the UML one has none):
#
#   vmlab run --kernel qemu --cpus 1 --timeout 400 --share . -- sh integration/vm/quota.sh
set -eu
cd "$(dirname "$0")/../.."
export PYTHONDONTWRITEBYTECODE=1
exec python3 -c '
import glob, site, sys
for path in glob.glob(".venv/lib/python3.*/site-packages"):
    site.addsitedir(path)
import pytest
sys.exit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", "plugins/volume-local/tests", "-k", "size", *sys.argv[1:]]))
'
