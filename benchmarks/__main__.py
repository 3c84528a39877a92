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

from benchmarks import report, rows
from benchmarks.contestants.start import OURS, PEERS, SHARING, Contestant, present, start_process
from benchmarks.measure import FAR, SURE, Measurements, around_batches, measure_keeping, measure_row
from benchmarks.report import RESULTS
from benchmarks.rows import MEASURED, TRAINED, Row
from jaxdl.errors import InputError

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
    """Measure, and write the page and the picture."""
    began = time.perf_counter()
    here, missing = present(options.peers, [one for one in PEERS if one.name in options.contestants])
    warn(report.list_missing(missing, {}) or "no peer is missing")
    contestants = [OURS, *here]
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder), options.data)
        wanted = rows.rows(Path(folder))
        found = measure_rows(wanted, contestants, options)
        made = report.row_lines(wanted, found)
        if not options.steady:
            made += report.start_lines(contestants, options.peers, wanted[0], found, options.rounds)
        costs = report.epoch_costs(wanted, found)
        ends = around_batches(wanted[0].task, options.rounds)
    if not options.steady:
        made += [
            *report.keeping_lines(measure_keeping(options.data, options.rounds)),
            *report.size_lines(options.peers),
        ]
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / f"{datetime.date.today()}-sizes.png"
    report.plot(costs, ends, report.peers_by_rows(found), picture)
    reading = report.READING.format(rounds=options.rounds, far=FAR, sure=SURE, trained=TRAINED, measured=MEASURED)
    minutes = (time.perf_counter() - began) / 60
    text = report.page(
        report.describe_machine(), made, contestants, missing, costs, ends, reading, minutes, picture.name
    )
    (options.out / f"{datetime.date.today()}-table.md").write_text(text)
    print(text)


def write_arrays(folder: Path, data: str) -> None:
    """Write the arrays that all contestants read."""
    sets = rows.write_weather(folder / "real", data)
    rows.write_simulated(folder / "simulated", sets)
    rows.write_images(folder / "images", data)
    warn("the arrays are written")


def measure_rows(
    wanted: Sequence[Row], contestants: Sequence[Contestant], options: argparse.Namespace
) -> dict[str, Measurements]:
    """Measure each row, with a process of each contestant for each group of rows."""
    found: dict[str, Measurements] = {}
    for group in dict.fromkeys(row.group for row in wanted):
        taking_part = [TOGETHER] if group == "sweep" else contestants
        with ExitStack() as stack:
            asks = {one.name: stack.enter_context(start_process(one, options.peers)) for one in taking_part}
            for row in wanted:
                if row.group == group:
                    found[row.title] = measure_row(row, asks, options.rounds, found.get(row.after), warn)
    return found


def warn(line: str) -> None:
    """Print a line for those who wait."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
