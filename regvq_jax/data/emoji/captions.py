"""English noun phrases from emoji labels: 'rooster' -> 'a rooster', 'eyes' -> 'eyes'.

The rules are simple, and made for the labels of this package only. The head of a label is what
stands before its first linking word. It takes no article where it is a plural (ends in -s, but not
in -ss, -us or -os), begins with one of a few words, or is in the list of uncounted heads; all
others take 'a' or 'an'.
"""

import re
from collections.abc import Sequence

_LINKS = re.compile(" (?:with|without|in|of|on|and|or|behind|getting|holding|lifting|showing) ")
_BARE_STARTS = frozenset(
    "people men women children no input rolling locked unlocked Santa Mrs. Mx Statue thumbs palms "
    "mount".split()
)
# Stuff, names, signs and states, which nobody counts.
_UNCOUNTED = frozenset(
    re.split(
        r",\s+",
        """\
Aquarius, Cancer, Capricorn, Gemini, Leo, Libra, Ophiuchus, Sagittarius, Scorpio, Taurus,
Virgo, ZZZ, airplane arrival, airplane departure, american football, bacon, badminton,
baggage claim, baguette bread, baseball, basketball, biohazard, bowling, bread,
breast-feeding, broccoli, bubble tea, building construction, butter, camping, canned food,
construction, cooked rice, cooking, copyright, coral, currency exchange, curry rice,
custard, dashing away, divide, dizzy, dna, falafel, field hockey, fire, fog, foggy, fondue,
garlic, high voltage, horse racing, ice, ice cream, ice hockey, infinity, information,
lacrosse, left luggage, light rail, lipstick, luggage, mate, meat, milky way, minus, mobile
phone off, money, multiply, nail polish, non-potable water, oden, om, passport control, ping
pong, plus, popcorn, potable water, pouring liquid, prohibited, radioactive, registered,
rugby football, sake, salt, shaved ice, soap, soft ice cream, softball, spaghetti,
star-struck, sunrise, sunset, sushi, tennis, thread, trade mark, vibration mode, volleyball,
warning, wireless, wood, yarn""",
    )
)
# By sound, not by letter: 'a unicorn', 'a one-piece swimsuit'; 'an hourglass', 'an SOS button'.
_A_SOUND = re.compile(r"uni|euro|one-")
_AN_SOUND = re.compile(r"[aeiouAEIO]|hour|x-ray|NG |SOS |UP! ")

_PLAIN_WORDS = re.compile("[a-z]{2,}(?:[ -][a-z]+)*")
_UNSAFE_TAGS = frozenset("man men woman women person people no not".split())


def plain_label(label: str) -> str:
    """Rewrites a label with a colon: 'man: red hair' -> 'man with red hair'."""
    subject, colon, detail = label.partition(": ")
    if not colon:
        return label
    if subject == "keycap":
        return f"{subject} {detail}"
    return f"{detail} {subject}" if detail == "bald" else f"{subject} with {detail}"


def with_article(words: str) -> str:
    """Puts 'a' or 'an' before the words, by the sound of their first letters."""
    starts_with_vowel = _AN_SOUND.match(words) and not _A_SOUND.match(words)
    return f"{'an' if starts_with_vowel else 'a'} {words}"


def noun_phrase(label: str) -> str:
    """Turns an emoji label into a noun phrase, e.g. 'fork and knife' -> 'a fork and knife'."""
    label = plain_label(label)
    head = _LINKS.split(label)[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "os"))
    bare = (
        plural
        or head in _UNCOUNTED
        or head.split()[0] in _BARE_STARTS
        or head.endswith(("o’clock", "-thirty"))
    )
    return label if bare else with_article(label)


def new_tags(caption: str, tags: Sequence[str]) -> list[str]:
    """The tags that say something beyond the words of the caption, in their order.

    Tags that are no plain words ('<3', '-1', '24') stay out, and so do those that would contradict
    the picture: some women are also tagged 'man'.
    """
    words = set(re.split(r"\W+", caption.lower())) | _UNSAFE_TAGS
    return [
        tag for tag in tags if _PLAIN_WORDS.fullmatch(tag) and not words.issuperset(re.split(r"[ -]", tag))
    ]
