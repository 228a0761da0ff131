#!/bin/sh
# The limits of the local volume driver, in a VM whose kernel has project quotas:
#
#   VMLAB_UML=.../vmlab/uml vmlab run --cpus 1 --timeout 240 --share . -- sh integration/vm/quota.sh
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
