"""Noun phrases: articles, plurals, rewritten labels; and which tags may be said of a picture."""

import re

import pytest

from regvq_jax.data.emoji import captions, load_pack


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("rooster", "a rooster"),
        ("artist palette", "an artist palette"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("SOS button", "an SOS button"),
        ("eyes", "eyes"),
        ("french fries", "french fries"),
        ("face with smiling eyes", "a face with smiling eyes"),
        ("person lifting weights", "a person lifting weights"),
        ("octopus", "an octopus"),
        ("rhinoceros", "a rhinoceros"),
        ("dress", "a dress"),
        ("bacon", "bacon"),
        ("Taurus", "Taurus"),
        ("one o’clock", "one o’clock"),
        ("men wrestling", "men wrestling"),
        ("man: red hair", "a man with red hair"),
        ("woman: bald", "a bald woman"),
        ("keycap: 2", "a keycap 2"),
    ],
)
def test_noun_phrase(label, phrase):
    assert captions.noun_phrase(label) == phrase


def test_noun_phrases_of_all_labels_are_unique_and_use_an_before_vowels():
    phrases = [captions.noun_phrase(entry.caption) for entry in load_pack(64).entries]
    assert len(set(phrases)) == 1570
    assert not [phrase for phrase in phrases if re.match(r"a [aeiou](?!ni|uro|ne-)", phrase)]
    assert not [phrase for phrase in phrases if ":" in phrase]
    assert sum(phrase.startswith(("a ", "an ")) for phrase in phrases) > 1300


def test_new_tags_drop_repetitions_signs_and_contradictions():
    tags = ["-1", "<3", "bird", "farm yard", "man", "rooster", "143"]
    assert captions.new_tags("rooster", tags) == ["bird", "farm yard"]
