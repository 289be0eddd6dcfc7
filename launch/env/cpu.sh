# shellcheck shell=bash
# Sourced by launch/local.sh with REGVQ_ENV=cpu. What you have set yourself stands last or is kept, and wins.

flags=(
    # A try of a mesh without accelerators: this machine counts as so many devices.
    --xla_force_host_platform_device_count="${REGVQ_CPU_DEVICES:-1}"
    # Many devices take turns on few cores, and XLA ends the process when one waits for the others for less
    # than a minute.
    --xla_cpu_collective_call_terminate_timeout_seconds=600
    # Likewise it warns after seconds.
    --xla_cpu_collective_call_warn_stuck_timeout_seconds=60
)
export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
# Otherwise jax looks for accelerators first, and takes one that it finds.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
