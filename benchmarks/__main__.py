"""Compare the speed of jaxdl with other libraries: the benchmark table.

    python -m benchmarks --data DIR [--peers PYTHON] [--rounds 5] [--contestants NAME ...] [--steady] [--out FOLDER]

`--peers` names the Python of an environment with the other libraries (see benchmarks/peers/requirements.txt). Without
it, the libraries of this environment take part, and the page lists the missing ones. Writes <date>-table.md and
<date>-sizes.png into a folder, benchmarks/results by default.
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
from benchmarks.contestants.start import OURS, PEERS, SHARED_GPU, Contestant, find_installed, start_process
from benchmarks.measure import FAR, SURE, Measurements, around_batches, measure_row, measure_saving
from benchmarks.report import RESULTS
from benchmarks.rows import MEASURED, TRAINED, Row
from jaxdl.errors import InputError

SWEEP = OURS._replace(flags=("--devices", "2"))  # shares the members of a sweep over two cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="auto", help="as in the experiments")
    parser.add_argument("--peers", default=sys.executable, help="Python of an environment with the other libraries")
    parser.add_argument("--rounds", type=int, default=5)
    names = [one.name for one in PEERS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, help="other libraries to measure")
    parser.add_argument("--steady", action="store_true", help="skip process starts, checkpoints and sizes on disk")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}.")
    if shutil.which(options.peers) is None:
        parser.error(f"--peers must be a Python, got {options.peers}. See benchmarks/peers/requirements.txt.")
    os.environ |= SHARED_GPU
    try:
        write_table(options)
    except InputError as error:
        parser.error(str(error))


def write_table(options: argparse.Namespace) -> None:
    """Measure all rows, and write the page and the plot."""
    began = time.perf_counter()
    installed, missing = find_installed(options.peers, [one for one in PEERS if one.name in options.contestants])
    warn(report.list_missing(missing, {}) or "no peer is missing")
    contestants = [OURS, *installed]
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder), options.data)
        table = rows.table_rows(Path(folder))
        measurements = measure_rows(table, contestants, options)
        lines, plain = report.row_lines(table, measurements), table[0]
        if not options.steady:
            lines += report.start_lines(contestants, options.peers, plain, measurements[plain.title], options.rounds)
        costs = report.epoch_costs(table, measurements)
        ends = around_batches(plain.task, options.rounds)
    if not options.steady:
        lines += report.saving_lines(measure_saving(options.data, options.rounds))
        lines += report.size_lines(options.peers)
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / f"{datetime.date.today()}-sizes.png"
    report.plot(costs, ends, report.peer_costs(measurements), picture)
    reading = report.READING.format(rounds=options.rounds, far=FAR, sure=SURE, trained=TRAINED, measured=MEASURED)
    minutes = (time.perf_counter() - began) / 60
    text = report.page(
        report.describe_machine(), lines, contestants, missing, costs, ends, reading, minutes, picture.name
    )
    (options.out / f"{datetime.date.today()}-table.md").write_text(text)
    print(text)


def write_arrays(folder: Path, data: str) -> None:
    """Write the arrays of all rows into a folder."""
    sets = rows.write_weather(folder / "real", data)
    rows.write_simulated(folder / "simulated", sets)
    rows.write_images(folder / "images", data)
    warn("wrote the arrays")


def measure_rows(
    table: Sequence[Row], contestants: Sequence[Contestant], options: argparse.Namespace
) -> dict[str, Measurements]:
    """Measure all rows; each contestant has a process for each group of rows."""
    measurements: dict[str, Measurements] = {}
    for group in dict.fromkeys(row.group for row in table):
        taking_part = [SWEEP] if group == "sweep" else contestants
        with ExitStack() as stack:
            asks = {one.name: stack.enter_context(start_process(one, options.peers)) for one in taking_part}
            for row in table:
                if row.group == group:
                    before = measurements.get(row.after)
                    measurements[row.title] = measure_row(row, asks, options.rounds, before, warn)
    return measurements


def warn(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
