#!/bin/sh
# AppArmor enforcing: our default profile in a kernel that has it. Run in the VM laboratory:
#   vmlab run --cpus 1 --share . --share PREFIX-OF-PYTHON -- sh integration/vm/apparmor.sh
# Prints one line for each check; ends with 0 when all hold.
set -u
cd "$(dirname "$0")/../.."
here=$PWD
work=$(mktemp -d /root/aa.XXXX)
failed=0

check() { # name expected-status command...
    name=$1 expected=$2; shift 2
    "$@" >"$work/out" 2>&1; status=$?
    if [ "$status" -eq "$expected" ]; then echo "ok   $name"; else
        failed=1; echo "FAIL $name: status $status, not $expected"; sed 's/^/     /' "$work/out" | tail -5; fi
}
says() { # name text command...
    name=$1 text=$2; shift 2
    "$@" >"$work/out" 2>&1
    if grep -qF -- "$text" "$work/out"; then echo "ok   $name"; else
        failed=1; echo "FAIL $name: no '$text' in"; sed 's/^/     /' "$work/out" | tail -5; fi
}

"$here/.venv/bin/python" -c "
import sys; sys.path.insert(0, 'integration')
from pathlib import Path
from harness import make_busybox
make_busybox(Path('$work'))" || exit 1
"$here/.venv/bin/engined" --data-root "$work/data" --exec-root "$work/run" -H "unix://$work/s" >"$work/log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon; rm -rf "$work"' EXIT
export DOCKER_HOST="unix://$work/s"
for _ in $(seq 300); do docker version >/dev/null 2>&1 && break; sleep 0.1; done
docker load -qi "$work/bb.tar" || { cat "$work/log"; exit 1; }
run() { docker run --rm --network none "$@"; }

says "info names AppArmor" "apparmor" docker info
says "containers run under engine-default" "engine-default (enforce)" run bb cat /proc/self/attr/current
docker run -d --name aa --network none bb sleep 600 >/dev/null
says "so do exec sessions" "engine-default (enforce)" docker exec aa cat /proc/self/attr/current
says "a privileged exec session is unconfined" "unconfined" docker exec --privileged aa cat /proc/self/attr/current
check "mount is denied even with CAP_SYS_ADMIN" 255 run --cap-add SYS_ADMIN --security-opt seccomp=unconfined bb \
    mount -t tmpfs none /tmp
check "and allowed without the profile" 0 run --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined bb mount -t tmpfs none /tmp
check "/proc/sys/kernel is denied though writable" 1 run --security-opt systempaths=unconfined bb \
    sh -c 'echo x > /proc/sys/kernel/core_pattern'
check "/proc/sysrq-trigger is denied" 1 run --security-opt systempaths=unconfined bb sh -c 'echo h > /proc/sysrq-trigger'
check "an ordinary file is written" 0 run bb sh -c 'echo x > /tmp/x'
check "a container can be killed" 0 docker kill aa
says "an unknown profile is refused" "AppArmor profile nosuch is not loaded" \
    run --security-opt apparmor=nosuch bb true
echo 'profile mine flags=(attach_disconnected) { file, capability, deny /etc/passwd r, signal, }' | apparmor_parser -Kr
check "a profile of the user's is applied" 1 run --security-opt apparmor=mine bb cat /etc/passwd
says "privileged is unconfined" "unconfined" run --privileged bb cat /proc/self/attr/current
says "privileged keeps a profile it names" "mine (enforce)" run --privileged --security-opt apparmor=mine bb \
    cat /proc/self/attr/current
exit $failed
