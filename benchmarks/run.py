"""Measures everything that the project promises about speed, prints a table and writes it down.

    python -m benchmarks.run [part ...]     the functions below that are in PARTS

Without a part all of them are measured but `track`, which starts the server of another project and
takes longer than all others together, and `million`, which fills databases with 4 GB.

Each figure is a ratio inside one run: both sides alternate, and the median of several rounds
counts, so that a machine that gets slower in the middle slows both. No network but loopback.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

from werkzeug.test import create_environ

from benchmarks import client as downloads
from benchmarks import load, signing, tracking
from benchmarks import million as searches
from benchmarks.world import World, bare_server, registry_server
from registry.domain import Selector
from registry.repository import Repository
from registry.repository.lanes import Lanes
from registry.services import Services
from registry.web import create_app

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results.json"
TAGS = 100_000
LARGE, HUGE = 100_000, 1_000_000
HUGE_ONES = ("huge", "huge2", "huge3", "huge4")
MEBI = 1 << 20


@dataclass(frozen=True)
class Row:
    """A promise: `value` is to be at least, or at most, `bar`. None when a side is missing."""

    what: str
    beside: str
    value: float | None
    unit: str
    bar: float
    at_least: bool
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the bar is reached."""
        if self.value is None:
            return "missing"
        return (
            "yes" if (self.value >= self.bar) == self.at_least or self.value == self.bar else "NO"
        )

    def __str__(self) -> str:
        shown = "-" if self.value is None else f"{self.value:.3g}{self.unit}"
        bar = f"{'>=' if self.at_least else '<='} {self.bar:g}{self.unit}"
        return (
            f"{self.verdict:8}{shown:>10}  {bar:12}{self.what}, beside {self.beside}. {self.note}"
        )


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Wall time of one call, over so many of them."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def alternated(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, times: int = 1
) -> list[tuple[float, float]]:
    """Seconds of both, round by round."""
    return [(seconds(ours, times), seconds(theirs, times)) for _ in range(rounds)]


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    """What ours takes, in units of theirs."""
    return statistics.median(ours / theirs for ours, theirs in pairs)


def sign(_: World) -> Iterator[Row]:
    """One link, beside the library of the store."""
    for what, beside, bar, sides in (
        ("signing one S3 GET URL", "botocore", 40, signing.s3()),
        ("signing one Azure blob URL", "generate_blob_sas", 4, signing.azure()),
    ):
        pairs = alternated(*sides, rounds=7, times=1000)
        note = f"{statistics.median(ours for ours, _ in pairs) * 1e6:.1f} us a link"
        yield Row(what, beside, 1 / median_ratio(pairs), "x", bar, True, note)


def warm(world: World) -> Iterator[Row]:
    """One file through gunicorn, beside Flask alone and beside DVC; memory while both are idle."""
    config = world.configure("one")
    path = world.path("model", stage="prod")
    request = load.request_of(path, world.token)
    with registry_server(config) as ours:
        answer = ours.get(path, world.token).decode()
        with bare_server(answer) as bare:
            rounds = []
            for server in (ours, bare):
                load.apply(server.port, request, seconds=1)
            for _ in range(7):
                rounds.append([load.apply(it.port, request, seconds=1.5) for it in (ours, bare)])
            rate = statistics.median(mine.rate / theirs.rate for mine, theirs in rounds)
            p99 = statistics.median(
                mine.percentile(0.99) / theirs.percentile(0.99) for mine, theirs in rounds
            )
            rates = [statistics.median(pair[n].rate for pair in rounds) for n in (0, 1)]
            note = f"{rates[0]:.0f}/s and {rates[1]:.0f}/s, 32 connections, 2 workers"
            beside = "a bare Flask view"
            yield Row("warm answer for one file, rate", beside, rate, "x", 0.85, True, note)
            yield Row("warm answer for one file, p99", beside, p99, "x", 1.5, False)
            alone = load.apply(ours.port, request, connections=1, seconds=2).percentile(0.5)
    dvc = _dvc(world)
    note = "" if dvc is None else f"{alone * 1e3:.2f} ms and {dvc * 1e3:.0f} ms"
    ratio = None if dvc is None else dvc / alone
    yield Row("the same answer", "dvc.api on a clone", ratio, "x", 200, True, note)


def unchanged(world: World) -> Iterator[Row]:
    """A question whose answer the client has, through gunicorn, beside Flask alone."""
    config = world.configure("one")
    query = world.path("model", stage="prod").partition("?")[2]
    path = f"/api/v1/resolve?{query}"
    with registry_server(config) as ours, bare_server("{}") as bare:
        digest = json.loads(ours.get(path, world.token))["digest"]
        request = load.request_of(path, world.token, f'"{digest}"')
        for server in (ours, bare):
            load.apply(server.port, request, seconds=1)
        rates = [
            [load.apply(it.port, request, seconds=1.5).rate for it in (ours, bare)]
            for _ in range(5)
        ]
    ratio = statistics.median(mine / theirs for mine, theirs in rates)
    ours_rate, bare_rate = (statistics.median(side) for side in zip(*rates, strict=True))
    note = f"{ours_rate:.0f}/s and {bare_rate:.0f}/s, 32 connections, 2 workers"
    yield Row("304 on a receipt, rate", "a bare Flask view", ratio, "x", 0.95, True, note)


def idle(world: World) -> Iterator[Row]:
    """Memory of workers that have answered nothing yet."""
    config = world.configure("one")
    with registry_server(config) as ours, bare_server("{}") as bare:
        for what in ("Rss", "Pss"):
            mine, theirs = (statistics.mean(it.memory(what)) for it in (ours, bare))
            note = f"{mine / MEBI:.0f} MiB and {theirs / MEBI:.0f} MiB"
            named = f"memory of an idle worker ({what.upper()})"
            yield Row(named, "a bare Flask worker", mine / theirs, "x", 2, False, note)


_DVC = """
import json, sys, time
from dvc import api
def answer():
    found = api.artifacts_show("model", stage="prod", repo=".")
    return api.get_url(found["path"], repo=".", rev=found["rev"])
answer()
times = []
for _ in range(3):
    start = time.perf_counter(); answer(); times.append(time.perf_counter() - start)
print(json.dumps(sorted(times)[1]))
"""


def _dvc(world: World) -> float | None:
    """Seconds that DVC takes on a clone that is already there, once it is imported."""
    python = ROOT / ".venv-dvc" / "bin" / "python"
    if not python.exists():
        return None
    clone = world.directory / "clone"
    subprocess.run(["git", "clone", "--quiet", world.directory / "one.git", clone], check=True)
    done = subprocess.run(
        [python, "-c", _DVC], check=False, cwd=clone, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return None
    return float(done.stdout.splitlines()[-1])


@contextmanager
def _repository(world: World, name: str) -> Iterator[Repository]:
    origin, mirror = world.directory / f"{name}.git", world.directory / "mirrors" / name
    with closing(Lanes()) as lanes:
        repository = Repository(f"bench/{name}", str(origin), mirror, lanes=lanes)
        repository.snapshot(60, wait=120)
        yield repository
        repository.close()


def tags(world: World) -> Iterator[Row]:
    """A hundred thousand tags."""
    origin = world.directory / "many.git"
    with _repository(world, "many") as many, _repository(world, "one") as one:
        bare = ["git", f"--git-dir={many._mirror.commands.git_dir}", "for-each-ref", "refs/tags"]
        listing = [*bare, "--format=%(refname) %(objecttype) %(*objectname) %(taggerdate:unix)"]
        for named, git in (("for-each-ref", bare), ("for-each-ref of the fields needed", listing)):
            pairs = alternated(lambda: _first_index(many), _command(git), 3)
            note = f"{statistics.median(ours for ours, _ in pairs):.2f} s"
            what = "100,000 tags, first index and answer"
            yield Row(what, f"git {named}", median_ratio(pairs), "x", 3, False, note)
        of_many, of_one = Selector.parse("a7", stage="prod"), Selector.parse("model", stage="prod")
        pairs = alternated(
            lambda: many.snapshot(3600).index.resolve(of_many),
            lambda: one.snapshot(3600).index.resolve(of_one),
            7,
            20_000,
        )
        note = f"{pairs[0][0] * 1e6:.1f} us"
        named = "100,000 tags, a warm resolve"
        yield Row(named, "the 1-tag repository", median_ratio(pairs), "x", 1.2, False, note)
        look = _command(["git", "ls-remote", "--heads", "--tags", "--refs", str(origin)])
        for named, news, bar in (("nothing new", False, 1.5), ("one new tag", True, 4)):
            pairs = []
            for number in range(5):
                if news:
                    world.add_tag("many", f"a7@v9.{number}.0", 1_800_000_000 + number)
                before = many.snapshot(3600).index
                time.sleep(1.1)  # the origin is looked at once a second at most
                pairs += alternated(lambda: many.snapshot(0, wait=120), look, 1)
                assert (many.snapshot(3600).index is not before) == news
            note = f"{statistics.median(ours for ours, _ in pairs):.2f} s"
            what = f"100,000 tags, a refresh with {named}"
            yield Row(what, "git ls-remote", median_ratio(pairs), "x", bar, False, note)


def _command(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _first_index(repository: Repository) -> None:
    """From the refs of a mirror to the first answer, as after a clone."""
    mirror = repository._mirror
    mirror._write_refs(mirror._listed())
    state = mirror.state()
    assert state
    told = mirror.refs(state)
    assert told
    repository._objects.close()  # which the first process must start, too
    repository._index(None, told).resolve(Selector.parse("a7", stage="prod"))


def directory(world: World) -> Iterator[Row]:
    """A directory of a hundred thousand files, its manifest in memory."""
    world.configure("one")
    services = Services.of(world.settings)
    app = create_app(services)
    path, _, query = world.path("large").partition("?")

    def ours(measure: Callable[[bytes], object]) -> None:
        headers = {"Authorization": f"token {world.token}"}
        environ = create_environ(path, query_string=query, headers=headers)
        status = []
        parts = app(environ, lambda line, *_: status.append(line))
        for part in parts:
            measure(part)
        assert status[0].startswith("200"), status
        getattr(parts, "close", lambda: None)()

    whole: list[bytes] = []
    ours(whole.append)
    answer = json.loads(b"".join(whole))
    size = sum(map(len, whole))
    whole.clear()
    dump = {"ensure_ascii": False, "separators": (",", ":")}
    pairs = alternated(lambda: ours(len), lambda: json.dumps(answer, **dump), 5)
    note = f"{statistics.median(mine for mine, _ in pairs):.2f} s for {size / MEBI:.0f} MiB"
    named = "100,000 files, the whole answer"
    yield Row(named, "json.dumps of it", median_ratio(pairs), "x", 4, False, note)
    tracemalloc.start()
    ours(len)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    note = f"{peak / MEBI:.1f} MiB above the manifest"
    yield Row("100,000 files, peak memory", "the answer's size", peak / size, "x", 4, False, note)
    services.close()


_DOWNLOAD = """
import dataclasses, json, sys, time
from benchmarks import load
begun = time.monotonic()
while True:
    try:
        found = load.download(int(sys.argv[1]), load.request_of(sys.argv[2], sys.argv[3]))
        break
    except AssertionError as error:
        if "503" not in str(error) or time.monotonic() > begun + 120:
            raise
        time.sleep(2)  # as the answer says
print(json.dumps(dataclasses.asdict(found)))
"""


def huge(world: World) -> Iterator[Row]:
    """A directory of a million files, while other requests go on."""
    config = world.configure("one")
    request = load.request_of(world.path("model", stage="prod"), world.token)

    def fetch(port: int, name: str = "huge") -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", _DOWNLOAD, str(port), world.path(name), world.token]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def finished(process: "subprocess.Popen[bytes]") -> Mapping[str, float]:
        found: dict[str, float] = json.loads(process.communicate()[0])
        assert found["is_whole"], found
        return found

    with registry_server(config) as ours:
        ours.get(world.path("model", stage="prod"), world.token)
        cold = finished(fetch(ours.port))["first"]
        for _ in range(2):  # until every worker has read it, most likely
            warm_up = finished(fetch(ours.port))
        firsts, ratios = [warm_up["first"]], []
        for _ in range(2):
            calm = load.apply(ours.port, request, seconds=2)
            process = fetch(ours.port)
            busy = load.apply(
                ours.port, request, seconds=8, until=lambda p=process: p.poll() is not None
            )
            firsts.append(finished(process)["first"])
            ratios.append(busy.percentile(0.99) / calm.percentile(0.99))
        peak = ours.peak()
    beside = "nothing"
    first = statistics.median(firsts)
    note = f"{cold:.1f} s when the manifest is in no memory yet"
    yield Row("1,000,000 files, first byte", beside, first, " s", 1, False, note)
    parse = partial(json.loads, world.listing("huge"))
    parsing = statistics.median(seconds(parse) for _ in range(3))
    named, note = "1,000,000 files, first byte of all", f"{parsing:.1f} s; fetched and checked, too"
    yield Row(named, "json.loads of the list", cold / parsing, "x", 4, False, note)
    del parse
    named, note = "1,000,000 files, memory of a worker", "peak, the first reading included"
    yield Row(named, beside, peak / 1e6, " MB", 400, False, note)
    named = "1,000,000 files, p99 of other requests"
    ratio = statistics.median(ratios)
    yield Row(named, "the same without", ratio, "x", 2, False, "32 connections, 2 workers")
    shutil.rmtree(world.settings.data_dir / "manifests")
    with registry_server(config, workers=1) as ours:
        begun = time.monotonic()
        for process in [fetch(ours.port, name) for name in HUGE_ONES]:
            finished(process)
        note = f"{time.monotonic() - begun:.0f} s for all of them"
        named = f"{len(HUGE_ONES)} x 1,000,000 files, cold, at once, memory of the worker"
        yield Row(named, beside, ours.peak() / 1e6, " MB", 400, False, note)


def cold(world: World) -> Iterator[Row]:
    """Five hundred repositories that nobody asked for before, while a known one is asked for."""
    names = [f"cold{number}" for number in range(500)]
    for name in names:
        (world.directory / f"{name}.git").symlink_to(world.directory / "one.git")
    config = world.configure("one", *names)
    path = world.path("model", stage="prod")
    request = load.request_of(path, world.token)
    with registry_server(config) as ours, ThreadPoolExecutor(8) as crowd:
        ours.get(path, world.token)
        calm = load.apply(ours.port, request, seconds=4)

        def ask(name: str) -> bool:
            with suppress(HTTPError):  # 503: it is being cloned
                ours.get(world.path("model", repository=name), world.token)
                return True
            return False

        asked = [crowd.submit(ask, name) for name in names]
        busy = load.apply(
            ours.port, request, seconds=60, until=lambda: all(it.done() for it in asked)
        )
    answered = sum(it.result() for it in asked)
    note = f"{answered} of 500 answered at once, in {busy.seconds:.0f} s; 32 connections, 2 workers"
    ratio = busy.percentile(0.99) / calm.percentile(0.99)
    named = "p99 of a known repository while 500 are cloned"
    yield Row(named, "the same without", ratio, "x", 2, False, note)


def client(world: World) -> Iterator[Row]:
    """Whole commands, from a real store on this machine; and how soon the command line is there."""
    downloads.compile_all()
    times = sorted(downloads.startup() for _ in range(15))
    named, value = "`registry --help`", statistics.median(times) * 1e3
    yield Row(named, "nothing", value, " ms", 150, False, f"{times[0] * 1e3:.0f} ms at best")
    try:
        with downloads.downloads(world) as made:
            made.ours("thousand")  # until the service has read the manifest
            for source, where, bar in (
                ("a directory", made.local, 3),
                ("S3, with a token", downloads.REPOSITORY, 1),
            ):
                runs = [(made.ours("thousand", where), made.dvc("thousand", where)) for _ in "123"]
                known = [(ours, dvc) for ours, dvc in runs if dvc is not None]
                ratio = 1 / median_ratio(known) if known else None
                note = f"{runs[0][0]:.1f} s and {runs[0][1] or 0:.1f} s"
                named = f"`registry get` of 1,000 files of 100 KB from {source}"
                yield Row(named, "`dvc artifacts get`", ratio, "x", bar, True, note)
            rounds = [
                (made.ours("large"), made.curl("large"), made.checked("large")) for _ in "123"
            ]
            pairs = [(ours, curl) for ours, curl, _ in rounds]
            note = f"{pairs[0][0]:.1f} s and {pairs[0][1]:.1f} s; curl does not check the MD5"
            named = "`registry get` of one file of 1 GB, rate"
            yield Row(named, "curl", 1 / median_ratio(pairs), "x", 0.9, True, note)
            pairs = [(ours, checked) for ours, _, checked in rounds]
            note = f"{pairs[0][0]:.1f} s and {pairs[0][1]:.1f} s; both check the MD5"
            yield Row(named, "curl, then md5sum", 1 / median_ratio(pairs), "x", 1, True, note)
    except downloads.NoStore as reason:
        yield Row("`registry get`", "DVC and curl", None, "x", 3, True, str(reason))


def track(world: World) -> Iterator[Row]:
    """Experiments and runs, beside MLflow's own server."""
    beside = "mlflow server"
    if not tracking.install():
        yield Row("tracking", beside, None, "x", 10, True, "MLflow cannot be had")
        return
    for found in tracking.compare(world.directory / "tracking"):
        if isinstance(found, tracking.Compared):
            rates, plain, p99s = found.rates, found.plain, found.p99s
            note = (
                f"{rates[0]:.0f}/s and {rates[1]:.0f}/s, p99 {p99s[0] * 1e3:.0f} and "
                f"{p99s[1] * 1e3:.0f} ms; as clients come {plain[0]:.0f}/s and {plain[1]:.0f}/s"
            )
            yield Row(found.what, beside, rates[0] / rates[1], "x", 10, True, note)
        elif isinstance(found, tracking.Transferred):
            mine, other = found.rates
            note = f"{mine:.0f} and {other:.0f} MiB/s, hashed, on the disk when it is answered"
            yield Row(found.what, beside, mine / other, "x", 2, True, note)
        else:
            held, their = found
            note = f"{held / MEBI:.0f} and {their / MEBI:.0f} MiB, 2 workers after all that"
            yield Row("memory of tracking (PSS)", beside, held / their, "x", 0.5, False, note)


def million(world: World) -> Iterator[Row]:
    """Searches over a million runs in PostgreSQL, and in SQLite."""
    directory = world.directory / "million"
    directory.mkdir()
    for found in searches.searched(directory):
        note = f"{found.longest * 1e3:.0f} ms at worst"
        if found.third:
            note += f", the third page {found.third * 1e3:.0f} ms"
        named = f"1,000,000 runs in {found.database}, {found.what}, the first page"
        yield Row(named, "nothing", found.median * 1e3, " ms", 100, False, note)


ALONE = (track, million)
"""Parts that take long, or need much that is not there everywhere: only when they are named."""
PARTS = (sign, warm, unchanged, idle, cold, tags, directory, huge, client, *ALONE)


def main(words: list[str]) -> int:
    """Prints a row as soon as it is known. Exit code 1 when a bar is not reached."""
    begun, missed = time.monotonic(), False
    wanted = [part for part in PARTS if part.__name__ in words or (not words and part not in ALONE)]
    with tempfile.TemporaryDirectory(prefix="registry-bench-") as directory_of_all:
        world = World(Path(directory_of_all))
        try:
            sizes = {"large": LARGE}
            if huge in wanted:
                sizes |= dict.fromkeys(HUGE_ONES, HUGE)
            world.make_one(sizes)
            if tags in wanted:
                world.make_many(TAGS)
            for part in wanted:
                started, rows = time.monotonic(), []
                for row in part(world):
                    print(row, flush=True)
                    rows.append(row)
                    missed = missed or row.verdict == "NO"
                print(f"         {part.__name__}: {time.monotonic() - started:.0f} s", flush=True)
                _write_down(part.__name__, rows)
        finally:
            world.close()
    print(f"{time.monotonic() - begun:.0f} s")
    return int(missed)


def _write_down(part: str, rows: list[Row]) -> None:
    """Replaces the rows of a part, and leaves those of others."""
    known = json.loads(RESULTS.read_text())["parts"] if RESULTS.exists() else {}
    found = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
    }
    names = [it.__name__ for it in PARTS]
    parts = {name: known[name] for name in names if name in known} | {part: found}
    RESULTS.write_text(json.dumps({"parts": parts}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
