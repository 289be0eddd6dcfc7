import platform

from regvq_jax.host_memory import keep_freed_memory


def test_glibc_takes_the_settings_and_others_are_left_alone():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
