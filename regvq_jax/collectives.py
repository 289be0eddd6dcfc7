"""What devices send each other in a compiled step, read off the text of its program."""

import collections
import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {f"{kind}{bits}": bits for kind in "sufc" for bits in (4, 8, 16, 32, 64, 128)}
BITS |= {"pred": 8, "bf16": 16}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r"^s32\[\]\S* constant\((\d+)\)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CHAIN = re.compile(r'channel_id=(\d+).*chain_id="(\d+)"')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in a step.

    Attributes:
        count: how many run; those in a loop as often as it goes round.
        bytes: of all their arrays on one device, of each the larger of what goes in and what comes out.
    """

    count: int = 0
    bytes: int = 0


def shape_bytes(text: str) -> int:
    """Bytes of the arrays that a piece of HLO text spells out, such as `(f32[8,16]{1,0}, s32[])`."""
    total = 0
    for name, sizes in _SHAPE.findall(text):
        if bits := _bits(name):
            total += math.ceil(math.prod(int(n) for n in sizes.split(",") if n) * bits / 8)
    return total


def _bits(name: str) -> int:
    """Of an element; 0 where the name is no dtype. `f8e4m3fn` and its like have 8."""
    return BITS.get(name) or BITS.get(re.match(r"[a-z]*\d*", name)[0], 0)


def count_collectives(hlo: str) -> dict[str, Traffic]:
    """The collectives of an optimised HLO module by kind; kinds without any are left out.

    Of a conditional both branches are counted; a loop whose rounds cannot be told counts once.
    """
    found = {}  # Of each computation: (kind, bytes) of its own, (name, times) of those it calls.
    limits = {}  # Of each computation: its whole numbers, one of which ends a loop.
    chains = set()
    entry, own, calls, shapes = "", [], [], {}
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            own, calls, shapes = [], [], {}
            found[header[2]] = (own, calls)
            limits[header[2]] = numbers = []
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            name, rest = instruction.groups()
            # Long tuples number their parts in comments.
            rest = re.sub(r"/\*.*?\*/", "", rest)
            if limit := _LIMIT.match(rest):
                numbers.append(int(limit[1]))
            if not (opcode := _OPCODE.search(rest)):
                continue
            result, operands = rest[: opcode.start()], rest[opcode.end() :].partition(")")[0]
            shapes[name] = shape_bytes(result)
            trips = _rounds(rest, limits) if opcode[1] == "while" else 1
            called = _CALLED.findall(rest)
            for branches in _BRANCHES.findall(rest):
                called += re.findall(r"[\w.\-]+", branches)
            kind = opcode[1].removesuffix("-start")
            # A TPU's program goes on with one collective in several places, each of which spells it out.
            chain = _CHAIN.search(rest)
            if kind in KINDS and chain and chain.groups() in chains:
                continue
            if kind in KINDS:
                chains |= {chain.groups()} if chain else set()
                given = sum(shapes.get(operand, 0) for operand in re.findall(r"%?([\w.\-]+)", operands))
                # What starts a collective returns its operands too.
                made = shapes[name] - (given if opcode[1].endswith("-start") else 0)
                own.append((kind, max(given, made)))
            else:
                calls += [(computation, trips) for computation in called]
    return _sum_up(found, entry)


def _rounds(loop: str, limits: dict[str, list[int]]) -> int:
    """How often the body of a `while` runs: as its text says, or up to the one number of its condition."""
    if known := _TRIPS.search(loop):
        return int(known[1])
    numbers = limits.get(_CONDITION.search(loop)[1], [])
    return numbers[0] if len(numbers) == 1 else 1


def _sum_up(found: dict[str, tuple[list, list]], entry: str) -> dict[str, Traffic]:
    """The collectives of computation `entry` with all that it calls."""
    times = collections.Counter({entry: 1})
    # Callers stand behind what they call, so from the end on every computation's count is complete.
    for name in reversed(list(found)):
        for called, trips in found[name][1]:
            times[called] += times[name] * trips
    counts, sizes = collections.Counter(), collections.Counter()
    for name, (own, _) in found.items():
        for kind, size in own:
            counts[kind] += times[name]
            sizes[kind] += times[name] * size
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}
