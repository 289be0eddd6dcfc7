"""Programs take turns, back and forth."""

from functools import partial

from regvq_jax.bench.measure import Limits, Program, measure_in_turns


def append(path, letter):
    def run():
        with path.open("a") as file:
            file.write(letter)
        return {"letter": letter}

    return lambda: Program(run)


def test_every_second_round_goes_the_other_way_round(tmp_path):
    path = tmp_path / "order"
    programs = {letter: partial(append, path, letter) for letter in "ab"}
    measured = measure_in_turns(programs, Limits(repeats=3, seconds=60, memory_bytes=2**32))
    # Once untimed, then three rounds.
    assert path.read_text() == "ab" + "ab" + "ba" + "ab"
    assert [len(x.seconds) for x in measured.values()] == [3, 3]
    assert measured["b"].result["letter"] == "b"
