#!/bin/sh
# cgroup v2 with runc and with crun: limits, OOM kills, stats, pause, update, health. Run in the VM laboratory:
#   vmlab run --cpus 1 --share . --share PREFIX-OF-PYTHON -- sh integration/vm/cgroup2.sh
# Prints one line for each check; ends with 0 when all hold.
set -u
cd "$(dirname "$0")/../.."
here=$PWD
work=$(mktemp -d /root/cg.XXXX)
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

says "info says version 2" "Cgroup Version: 2" docker info
for runtime in runc crun; do
    command -v $runtime >/dev/null || { echo "FAIL $runtime is not installed"; failed=1; continue; }
    run() { docker run --rm --runtime $runtime --network none "$@"; }
    file() { cat "/proc/$(docker inspect -f '{{.State.Pid}}' aa)/root/sys/fs/cgroup/$1"; }
    docker run -d --name aa --runtime $runtime --network none -m 64m --memory-swap 64m --cpus 0.5 --pids-limit 50 \
        --cpu-shares 512 bb sleep 600 >/dev/null || { cat "$work/log"; failed=1; continue; }
    says "$runtime: memory.max" 67108864 file memory.max
    says "$runtime: memory.swap.max" 0 file memory.swap.max
    says "$runtime: cpu.max" "50000 100000" file cpu.max
    says "$runtime: pids.max" 50 file pids.max
    check "$runtime: update" 0 docker update -m 96m --memory-swap 96m --pids-limit 77 aa
    says "$runtime: memory.max after update" 100663296 file memory.max
    says "$runtime: pids.max after update" 77 file pids.max
    check "$runtime: pause" 0 docker pause aa
    says "$runtime: frozen" "frozen 1" file cgroup.events
    check "$runtime: unpause" 0 docker unpause aa
    says "$runtime: stats" "96MiB" docker stats --no-stream aa
    says "$runtime: top" "sleep 600" docker top aa -eo pid,args  # the guest's own ps -ef fails: UML has no boot time for it
    check "$runtime: exec" 3 docker exec aa sh -c 'exit 3'
    check "$runtime: rm" 0 docker rm -f aa
    docker run --name oom --runtime $runtime --network none -m 16m --memory-swap 16m bb sh -c 'tail /dev/zero' \
        >/dev/null 2>&1
    says "$runtime: an OOM kill is 137 and told" "137 true" docker inspect -f '{{.State.ExitCode}} {{.State.OOMKilled}}' oom
    docker rm oom >/dev/null
    says "$runtime: a fork bomb is contained" "can't fork" run --pids-limit 10 bb \
        sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait'
    docker run -d --name hh --runtime $runtime --network none --health-interval 1s --health-timeout 20s \
        --health-cmd true bb sleep 600 >/dev/null
    for _ in $(seq 60); do [ "$(docker inspect -f '{{.State.Health.Status}}' hh)" = healthy ] && break; sleep 0.5; done
    says "$runtime: health" healthy docker inspect -f '{{.State.Health.Status}}' hh
    says "$runtime: debug" "sleep 600" "$here/.venv/bin/engine" debug -c ps hh
    check "$runtime: rm of a checked one" 0 docker rm -f hh
done
exit $failed
