"""Many runs at once beside one run, and beside Keras one after the other, in one run, alternating.

    python -m benchmarks.studies.ensembles --data DIR --peers PYTHON [--repeats 5]

`--peers` names the Python of an environment that has keras, jax, scikit-learn and pandas; without it only this project
is measured. All figures are seconds a run of 200 epochs of `plain`, warm; Keras's are the mean of four runs in a
process, to be multiplied by the number of runs. Prints medians with the least and the greatest value.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.studies.alternating import alternate, output

PEERS = Path(__file__).parent


def last_of(command: list[str]) -> Callable[[], float]:
    """The seconds a member of the last repetition in a process."""
    return lambda: float(json.loads(output(command).splitlines()[-1])["seconds_a_member"])


def mean_of_last(command: list[str], count: int) -> Callable[[], float]:
    """The mean seconds of the last runs in a process, the first being for compilation."""

    def measure() -> float:
        lines = output([*command, "--seeds", *map(str, range(count + 1))]).splitlines()
        return sum(float(json.loads(line)["seconds"]["fit"]) for line in lines[-count:]) / count

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peers", help="the Python of the peers' environment")
    parser.add_argument("--members", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
    one = [sys.executable, "-m", "benchmarks.studies.fit_ensemble", "--data", options.data, "--recipe", "plain"]
    programs = {}
    for members in options.members:
        many = [*one, "--members", str(members), "--devices", str(cores), "--repeats", "2"]
        programs[f"{members} members on {cores} devices, each"] = last_of(many)
    programs["one run"] = last_of([*one, "--members", "0", "--flat", "--repeats", "4"])
    if options.peers:
        keras = [options.peers, str(PEERS / "keras_weather.py"), "--data", options.data, "--recipe", "plain", "--warm"]
        programs["Keras, JAX, each of four"] = mean_of_last(keras, 4)
    alternate("200 epochs of plain, warm", programs, options.repeats)


if __name__ == "__main__":
    main()
