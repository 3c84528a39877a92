"""jaxdl beside what one would use instead: the table, from one command.

    python -m benchmarks --data DIR [--peers PYTHON] [--rounds 5] [--contestants NAME ...] [--steady] [--out FOLDER]

`--peers` names the Python of the peers' environment (benchmarks/peers/requirements.txt says how to make it); without it
the peers that this environment has take part, and the rest is named as missing. Writes <date>-table.md and
<date>-sizes.png into the folder, benchmarks/results by default.
"""

import argparse
import datetime
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import arrays, lines, machine, report, sizes, table
from benchmarks.contestants.start import OURS, PEERS, SHARING, Contestant, present, started
from benchmarks.keeping import keeping
from benchmarks.measure import FAR, SURE, Found, measure
from benchmarks.rows import MEASURED, TRAINED, Row, rows
from jaxdl.errors import InputError

RESULTS = Path(__file__).parent / "results"
TOGETHER = OURS._replace(flags=("--devices", "2"))  # a sweep's members, a core each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto", help="as of the experiments")
    parser.add_argument("--peers", default=sys.executable, help="the Python of the peers' environment")
    parser.add_argument("--rounds", type=int, default=5)
    names = [one.name for one in PEERS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, help="the peers that take part")
    parser.add_argument("--steady", action="store_true", help="no starts, no checkpoints, no sizes on disk")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}.")
    if shutil.which(options.peers) is None:
        parser.error(
            f"--peers must be a Python, got {options.peers}. benchmarks/peers/requirements.txt says how to make one."
        )
    os.environ |= SHARING
    try:
        tabulate(options)
    except InputError as error:
        parser.error(str(error))


def tabulate(options: argparse.Namespace) -> None:
    """Measures, and writes the page and the picture."""
    began = time.perf_counter()
    here, missing = present(options.peers, [one for one in PEERS if one.name in options.contestants])
    tell(table.absent(missing, {}) or "no peer is missing")
    contestants = [OURS, *here]
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder), options.data)
        wanted = rows(Path(folder))
        found = measured(wanted, contestants, options)
        made = lines.of_rows(wanted, found)
        if not options.steady:
            made += lines.of_starts(contestants, options.peers, wanted[0], found, options.rounds)
        costs = lines.costs(wanted, found)
        ends = sizes.around_batches(wanted[0].task, options.rounds)
    if not options.steady:
        made += [*lines.of_keeping(keeping(options.data, options.rounds)), *lines.of_sizes(options.peers)]
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / f"{datetime.date.today()}-sizes.png"
    sizes.plot(costs, ends, lines.peers_by_rows(found), picture)
    reading = report.READING.format(rounds=options.rounds, far=FAR, sure=SURE, trained=TRAINED, measured=MEASURED)
    minutes = (time.perf_counter() - began) / 60
    text = report.page(machine.describe(), made, contestants, missing, costs, ends, reading, minutes, picture.name)
    (options.out / f"{datetime.date.today()}-table.md").write_text(text)
    print(text)


def write_arrays(folder: Path, data: str) -> None:
    """What all contestants read."""
    sets = arrays.write_weather(folder / "real", data)
    arrays.write_simulated(folder / "simulated", sets)
    arrays.write_images(folder / "images", data)
    tell("the arrays are written")


def measured(wanted: Sequence[Row], contestants: Sequence[Contestant], options: argparse.Namespace) -> dict[str, Found]:
    """The figures of each row: a process of each contestant for each group of rows."""
    found: dict[str, Found] = {}
    for group in dict.fromkeys(row.group for row in wanted):
        taking_part = [TOGETHER] if group == "sweep" else contestants
        with ExitStack() as stack:
            asks = {one.name: stack.enter_context(started(one, options.peers)) for one in taking_part}
            for row in wanted:
                if row.group == group:
                    found[row.title] = measure(row, asks, options.rounds, found.get(row.after), tell)
    return found


def tell(line: str) -> None:
    """To whom waits."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
