#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that xpk manages; arguments as of local.sh, after the workload's name:
#   export CLUSTER=tpus TPU_TYPE=v6e-256 IMAGE=YOUR_REGISTRY/regvq_jax:tpu      (launch/Dockerfile.tpu)
#   launch/xpk.sh coco --config=configs/coco.py --workdir=/shared/coco
# SLICES=2 takes two slices, STORAGE=NAME mounts what `xpk storage` calls so, for workdir and data.
# `xpk workload list` and `xpk workload delete --workload=NAME` do the rest.
set -euo pipefail
name=${1:?what shall it be called? launch/xpk.sh NAME --config=...}
shift
: "${CLUSTER:?the name of the cluster}" "${TPU_TYPE:?such as v6e-256}" "${IMAGE:?the container image}"

# exec: SIGTERM reaches the training. xpk restarts after 42 of itself, as often as --max-restarts says.
exec xpk workload create --cluster="$CLUSTER" --workload="$name" --tpu-type="$TPU_TYPE" \
    --num-slices="${SLICES:-1}" --docker-image="$IMAGE" ${STORAGE:+--storage="$STORAGE"} \
    --max-restarts=100 --termination-grace-period-seconds=120 \
    --command="REGVQ_ENV=tpu exec launch/local.sh $(printf '%q ' "$@")--distributed"
