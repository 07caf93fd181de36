"""Feeds hostile input to everything that reads what strangers wrote: `make fuzz`.

    python -m fuzz [--seconds 300] [--seed N] [TARGET ...]

Each target is a function of bytes. It may return, and it may raise what its module documents
(RegistryError, ValueError); anything else is a crash, and so is a call that takes longer than
SLOWEST. Inputs are those of fuzz/corpus/<target> with edits that hypothesis makes up, and shrinks
when something goes wrong. What crashed is written to fuzz/crashes: mend it, and move the file to
the corpus, which tests/test_security.py runs whole.
"""

import sys
import time
from contextlib import suppress
from faulthandler import cancel_dump_traceback_later, dump_traceback_later
from hashlib import sha256
from itertools import count
from pathlib import Path

import click
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.targets import ALLOWED, TARGETS, Target

HERE = Path(__file__).parent
SLOWEST = 5.0
"""Seconds that a single call may keep the processor busy, whatever else the machine does: many
times what the worst input within the limits takes.
"""
HANGING = 60
"""Seconds after which the whole run ends, with a traceback of where the call hangs."""
LARGEST = 1 << 17
"""Bytes of the largest input that is made up."""

ROUND = settings(
    max_examples=1000,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class Crash(Exception):
    """A target raised what it must not, or took too long."""


def corpus(target: str) -> list[bytes]:
    """The inputs that were put down for a target, in the order of their names."""
    return [file.read_bytes() for file in sorted((HERE / "corpus" / target).glob("*"))]


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """The corpus with some places replaced by words of the target's language, by parts of other
    inputs or by noise, or repeated: repetition is what bombs and slow patterns are made of.
    """
    seeds, words = [*corpus(target), b""], TARGETS[target][1]
    lines = [line for one in seeds for line in one.splitlines(keepends=True)][:500]
    replacement = st.none() | st.sampled_from([*words, *lines]) | st.binary(max_size=8)
    edit = st.tuples(
        st.floats(0, 1), st.integers(0, 40), replacement, st.sampled_from((1, 1, 1, 2, 10, 1000))
    )
    return st.builds(edited, st.sampled_from(seeds), st.lists(edit, max_size=12))


def edited(data: bytes, edits: list[tuple[float, int, bytes | None, int]]) -> bytes:
    """`data` with the edits: where, how many bytes go, what comes instead, and how often."""
    for place, length, replacement, times in edits:
        at = int(place * len(data))
        gone = data[at : at + length]
        data = (
            data[:at] + (gone if replacement is None else replacement) * times + data[at:][length:]
        )
        data = data[:LARGEST]
    return data


def attempt(target: Target, data: bytes) -> float:
    """The seconds of the processor that the target takes for the input. Raises Crash."""
    dump_traceback_later(HANGING, exit=True)
    began = time.thread_time()
    try:
        with suppress(*ALLOWED):
            target(data)
    except Exception as error:
        raise Crash(f"{type(error).__name__}: {error}"[:300]) from error
    finally:
        cancel_dump_traceback_later()
    spent = time.thread_time() - began
    if spent > SLOWEST:
        raise Crash(f"took {spent:.1f} s")
    return spent


def run(name: str, seconds: float, first: int) -> tuple[int, float, str | None]:
    """Fuzzes a target in rounds that begin with the seed `first`: how many inputs it took, the
    seconds of the slowest, and the crash, if any, with which it ended.
    """
    target, _ = TARGETS[name]
    until, number, slowest, last = time.monotonic() + seconds, 0, 0.0, b""

    @ROUND
    @given(inputs(name))
    def once(data: bytes) -> None:
        nonlocal number, slowest, last
        if time.monotonic() > until and not last:
            return  # the rest of the round is skipped
        number += 1
        try:
            slowest = max(slowest, attempt(target, data))
        except Crash:
            last = data
            raise

    for round_ in count(first):
        try:
            seed(round_)(once)()
        except Crash as crash:
            file = HERE / "crashes" / name / sha256(last).hexdigest()[:16]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(last)
            return number, slowest, f"{crash} [{file}, {len(last)} bytes]"
        if time.monotonic() > until:
            break
    return number, slowest, None


@click.command()
@click.option("--seconds", default=300, show_default=True, help="For all targets together.")
@click.option("--seed", "first", default=0, help="The first seed; 0 takes one from the time.")
@click.argument("names", nargs=-1, type=click.Choice(sorted(TARGETS)))
def main(seconds: int, first: int, names: tuple[str, ...]) -> None:
    """Fuzz the parsers. Exit code 1 if anything crashed."""
    chosen = names or tuple(TARGETS)
    first = first or int(time.time())
    print(f"seed {first}, {seconds / len(chosen):.0f} s for each of {len(chosen)} targets")
    failed = False
    for name in chosen:
        number, slowest, crash = run(name, seconds / len(chosen), first)
        print(f"{name:10} {number:>9,} inputs, slowest {slowest * 1000:8.1f} ms  {crash or 'ok'}")
        sys.stdout.flush()
        failed = failed or crash is not None
    sys.exit(failed)


if __name__ == "__main__":
    main()
