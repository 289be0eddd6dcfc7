#!/usr/bin/env bash
# What tpu_vm.sh calls on each worker: install, preflight ARGS, start ARGS, status, log or stop.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$HOME/regvq_venv/bin:$HOME/.local/bin:$PATH REGVQ_ENV=tpu
pid_file=$HOME/regvq.pid exit_file=$HOME/regvq.exit log_file=$HOME/regvq.log

# By its command line: after a restart of the machine its number may be another's.
running() { [[ -s $pid_file ]] && grep -qaE 'regvq_jax|launch/local' "/proc/$(<"$pid_file")/cmdline" 2>/dev/null; }

case $1 in
install)
    # The images' Python is older than ours; uv brings one.
    python3 -m pip install --quiet --user uv
    uv venv --quiet --clear --python 3.12 ~/regvq_venv
    VIRTUAL_ENV=~/regvq_venv uv pip install --quiet -e '.[tpu]'
    ;;
preflight) exec launch/local.sh preflight "${@:2}" --distributed ;;
start)
    if running; then
        exit
    fi
    rm -f "$pid_file" "$exit_file"
    # setsid: the training outlives this connection. This shell stays beside it to hand SIGTERM on and to keep
    # its exit code; a wait that a signal ends is begun anew.
    # shellcheck disable=SC2016
    setsid bash -c '
        launch/local.sh "${@:3}" &
        trap "kill -TERM $!" TERM
        echo $$ >"$1"
        while :; do
            wait $!
            code=$?
            kill -0 $! 2>/dev/null || break
        done
        echo $code >"$2"
    ' regvq "$pid_file" "$exit_file" "${@:2}" --distributed >>"$log_file" 2>&1 </dev/null &
    until [[ -s $pid_file ]]; do sleep 0.1; done
    ;;
status)
    if running; then
        echo "regvq: running"
    else
        echo "regvq: $(cat "$exit_file" 2>/dev/null || echo absent)"
    fi
    ;;
log) tail -n 30 "$log_file" ;;
stop)
    if running; then
        kill -TERM "$(<"$pid_file")"
        while running; do sleep 1; done
        echo stopped >"$exit_file"
    fi
    ;;
esac
