import time

from regvq_jax.watchdog import Watchdog


def test_silence_is_reported_with_every_thread(caplog, capfd):
    with caplog.at_level("WARNING", "regvq_jax"), Watchdog("prior", 0.2):
        time.sleep(0.7)
    assert "prior: no step has ended for" in caplog.text
    shown = capfd.readouterr().err
    assert "test_silence_is_reported_with_every_thread" in shown and "Thread" in shown


def test_a_beat_or_a_pause_is_no_silence(caplog, capfd):
    with caplog.at_level("WARNING", "regvq_jax"), Watchdog("prior", 0.4) as watchdog:
        for _ in range(6):
            time.sleep(0.1)
            watchdog.beat()
        with watchdog.paused():
            time.sleep(0.7)
        time.sleep(0.1)
    with Watchdog("prior", 0) as never:
        never.beat()
    assert not caplog.text and not capfd.readouterr().err
