import jax

from regvq_jax.profiler import Profile


def record_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def run(profile, calls, steps):
    for step in steps:
        calls.append(step)
        profile(step)
    profile.close()
    return calls


def test_traces_the_named_steps(monkeypatch, tmp_path):
    calls = record_calls(monkeypatch)
    run(Profile(tmp_path, first_step=2, num_steps=2), calls, range(6))
    assert calls == [0, 1, "start", 2, 3, "stop", 4, 5]


def test_traces_nothing_by_default(monkeypatch, tmp_path):
    calls = record_calls(monkeypatch)
    assert run(Profile(tmp_path), calls, range(3)) == [0, 1, 2]


def test_resumed_beyond_and_ended_early(monkeypatch, tmp_path):
    calls = record_calls(monkeypatch)
    run(Profile(tmp_path, first_step=2, num_steps=5), calls, [10, 11])
    assert calls == [10, "start", 11, "stop"]


def test_writes_a_trace(tmp_path):
    profile = Profile(tmp_path, first_step=0, num_steps=1)
    add = jax.jit(lambda x: x + 1)
    for step in range(2):
        profile(step, add(step))
    assert list(tmp_path.rglob("*.xplane.pb"))
