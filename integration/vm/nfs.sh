#!/bin/sh
# The nfs volume driver against the kernel's own NFS server and client, in a VM that has both:
#
#   VMLAB_UML=.../vmlab/uml vmlab run --cpus 1 --timeout 240 --share . -- sh integration/vm/nfs.sh
set -eu
cd "$(dirname "$0")/../.."
mkdir -p /srv/one /srv/two
printf '/srv/one *(rw,sync,no_root_squash,no_subtree_check,fsid=1)\n/srv/two *(ro,sync,no_root_squash,no_subtree_check,fsid=2)\n' >/etc/exports
systemctl restart nfs-server
exportfs -ra
export PYTHONDONTWRITEBYTECODE=1
exec python3 -c '
import glob, site, sys
for path in glob.glob(".venv/lib/python3.*/site-packages"):
    site.addsitedir(path)
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--confcutdir=integration/vm", "integration/vm/nfs_checks.py", *sys.argv[1:]]))
' "$@"
