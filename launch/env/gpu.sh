# shellcheck shell=bash
# Sourced by launch/local.sh with REGVQ_ENV=gpu. What you have set yourself stands last or is kept, and wins.

flags=(
    # Starts collectives early and lets matrix products run meanwhile.
    --xla_gpu_enable_latency_hiding_scheduler=true
)
export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
# A GPU that jax cannot use (its driver, its libraries) ends the run; otherwise it would go on with the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
# jax takes three quarters of the memory; nobody else needs the rest but the libraries' own workspaces.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# NCCL says which link failed; without it a broken one is a hang.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
