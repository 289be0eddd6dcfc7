"""Memory in huge pages, for the large arrays that a training step on CPUs makes anew each time."""

import importlib.metadata
import importlib.util
import itertools
import os
import sys

TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def start_anew_with_huge_pages(module: str) -> None:
    """Replaces this process by one whose C library asks for huge pages, where JAX can only compute on CPUs.

    The temporary memory of a step comes from the system, which clears it page by page; with pages of 2 MiB a
    step of a prior takes an eighth less time. glibc reads the setting, as all of `GLIBC_TUNABLES`, when a
    process starts: so this one starts its own command again, and stays the same process for the system.

    To be called before anything has been begun. Does nothing where the variable is set, be it to nothing, in
    a debugger, and where another program, such as a notebook, runs the module. `main`, `evaluate` and `bench`
    call it; the other commands and the Python API do not.

    Args:
        module: this command's, as in `python -m MODULE`.
    """
    own = ("-m", module) in itertools.pairwise(sys.orig_argv) and sys.gettrace() is None and sys.executable
    if sys.platform != "linux" or TUNABLES in os.environ or not own or not _only_cpus():
        return
    # Not the first word as it was given, which might name another Python on the PATH.
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, {**os.environ, TUNABLES: HUGE_PAGES})


def _only_cpus() -> bool:
    """Whether JAX has no accelerators to choose from; it would start its threads if it were asked."""
    if os.environ.get("JAX_PLATFORMS"):
        return os.environ["JAX_PLATFORMS"] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
