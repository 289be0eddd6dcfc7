#!/usr/bin/env bash
# Trains with N processes on this machine, each with one GPU, or all on its CPU; arguments as of local.sh:
#   launch/local_multiprocess.sh 2 --config=configs/quickstart.py:tiny --workdir=runs/two
# SIGTERM and Ctrl-C go to all of them: they save together and end with 42. When one dies, the others have
# REGVQ_GRACE_SECONDS to say what they miss. Exits with 42 only if nobody ended worse. Needs bash 5.1.
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:?how many processes? launch/local_multiprocess.sh N --config=...}
shift

port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export REGVQ_COORDINATOR=127.0.0.1:$port REGVQ_NUM_PROCESSES=$count
declare -A running=()
# Ctrl-C does not reach processes in the background; whatever ends this script ends them.
trap 'kill -TERM "${!running[@]}" 2>/dev/null || true' TERM INT
trap 'kill -KILL "${!running[@]}" 2>/dev/null || true' EXIT

for ((index = 0; index < count; index++)); do
    # Each takes one GPU, counted among those of CUDA_VISIBLE_DEVICES; a CPU has no such numbers.
    REGVQ_PROCESS_ID=$index JAX_LOCAL_DEVICE_IDS=$index launch/local.sh "$@" &
    running[$!]=$index
done

worst=0
while ((${#running[@]})); do
    code=0
    wait -n -p ended "${!running[@]}" || code=$?
    [[ -n ${ended:-} ]] || continue # A signal came, and nobody has ended.
    index=${running[$ended]}
    unset "running[$ended]"
    ((code == 0)) && continue
    ((worst == 0 || worst == 42)) && worst=$code
    ((code == 42)) && continue
    echo "process $index ended with $code" >&2
    if [[ -z ${killer:-} ]] && ((${#running[@]})); then
        # Its output is closed, lest its sleep keeps a reader of ours waiting.
        (sleep "${REGVQ_GRACE_SECONDS:-30}" && kill -KILL "${!running[@]}") >/dev/null 2>&1 &
        killer=$!
    fi
done
[[ -z ${killer:-} ]] || kill "$killer" 2>/dev/null || true
exit "$worst"
