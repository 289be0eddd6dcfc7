# shellcheck shell=bash
# Sourced by launch/local.sh with REGVQ_ENV=tpu. What you have set yourself stands last or is kept, and wins.

flags=(
    # Gradients are summed over `data` while the backward pass still runs.
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    # The same for arrays of different sizes, which convolutions and biases are.
    --xla_tpu_data_parallel_opt_different_sized_ops=true
)
# Not XLA_FLAGS: libtpu has a compiler and flags of its own.
export LIBTPU_INIT_ARGS="${flags[*]} ${LIBTPU_INIT_ARGS:-}"
# A TPU that another process holds ends the run; otherwise jax would go on with the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
