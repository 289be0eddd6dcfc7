#!/usr/bin/env bash
# Trains on all devices of this machine, from any directory:
#   launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart
#   REGVQ_ENV=gpu launch/local.sh ...      with the flags of launch/env/gpu.sh (or cpu.sh, tpu.sh)
#   launch/local.sh preflight ...          looks at the machine instead (launch/preflight.py)
# All other scripts here end in this one, so that they take the same arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -n ${REGVQ_ENV:-} ]]; then
    # shellcheck source=/dev/null
    source "launch/env/$REGVQ_ENV.sh"
fi
if [[ ${1:-} == preflight ]]; then
    exec python launch/preflight.py "${@:2}"
fi
# exec: SIGTERM reaches the training itself, which then saves and exits with 42.
exec python -m regvq_jax.main "$@"
