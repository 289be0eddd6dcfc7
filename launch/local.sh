#!/usr/bin/env bash
# Trains on all devices of this machine, from any directory:
#   launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
# exec: SIGTERM reaches the training itself, which then saves and exits with 42.
exec python -m regvq_jax.main "$@"
