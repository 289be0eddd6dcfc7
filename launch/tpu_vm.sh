#!/usr/bin/env bash
# A slice of Cloud TPU VMs, from nothing to a training and back:
#   export NAME=regvq ZONE=us-east5-b TYPE=v6e-64 RUNTIME=v2-alpha-tpuv6e     and SPOT=1 where wanted
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh setup            sends the code as it is here to every worker, and installs it
#   launch/tpu_vm.sh preflight --workdir=/shared/coco
#   launch/tpu_vm.sh run --config=configs/coco.py --workdir=/shared/coco
#   launch/tpu_vm.sh status | log | stop | delete
# `run` starts the training on every worker and watches it. After exit code 42 it starts it again; a slice that
# was preempted it makes anew first. The training does not depend on it: call it again and it goes on watching.
# `stop` lets the training save and end.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAME:?the name of the slice}" "${ZONE:?such as us-east5-b}"

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_all() { tpu ssh "$NAME" --worker=all --command="$1"; }
worker() { on_all "regvq_jax/launch/tpu_worker.sh $(printf '%q ' "$@")"; }
state() { tpu describe "$NAME" --format='value(state)' 2>/dev/null || echo ABSENT; }

create() {
    tpu create "$NAME" --accelerator-type="${TYPE:?such as v6e-64}" \
        --version="${RUNTIME:?such as v2-alpha-tpuv6e}" ${SPOT:+--spot}
}

setup() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    tar -czf "$archive" --exclude=__pycache__ pyproject.toml README.md LICENSE NOTICE regvq_jax configs launch
    tpu scp "$archive" "$NAME:regvq_jax.tar.gz" --worker=all
    rm "$archive"
    on_all "mkdir -p regvq_jax && tar -xzf regvq_jax.tar.gz -C regvq_jax"
    worker install
}

# Says what the workers say once none of them runs: exit codes, the highest first; or "lost" without a slice.
watch() {
    local said
    while [[ $(state) == READY ]]; do
        # A failed call is the connection's fault, not the training's.
        if said=$(worker status) && [[ $said != *"regvq: running"* ]]; then
            grep -o 'regvq: [a-z0-9]*' <<<"$said" | cut -d' ' -f2 | sort -u | sort -rn
            return
        fi
        sleep "${POLL_SECONDS:-60}"
    done
    echo lost
}

run() {
    local try end ends found
    for ((try = 0; try < ${TRIES:-50}; try++)); do
        found=$(state)
        if [[ $found == PREEMPTED || $found == TERMINATED ]]; then
            tpu delete "$NAME" --quiet
            found=ABSENT
        fi
        if [[ $found == ABSENT ]] && launch/tpu_vm.sh create && launch/tpu_vm.sh setup; then
            found=READY
        fi
        if [[ $found != READY ]]; then # There is no capacity, or it is being repaired.
            sleep "${POLL_SECONDS:-60}"
            continue
        fi
        worker start "$@"
        ends=$(watch)
        echo "ended: ${ends//$'\n'/ }"
        for end in $ends; do
            case $end in
            0 | 42 | absent | lost) ;;
            stopped) return 42 ;;
            *) worker log && return "$end" ;;
            esac
        done
        [[ $ends != 0 ]] || return 0
    done
    echo "given up after $try tries" >&2
    return 42
}

command=${1:?create, setup, preflight, run, status, log, stop or delete}
shift
case $command in
create | setup | run) "$command" "$@" ;;
preflight | status | log | stop) worker "$command" "$@" ;;
delete) tpu delete "$NAME" --quiet ;;
*) echo "unknown command: $command" >&2 && exit 2 ;;
esac
