"""python -m experiments.weather: one run of the experiment."""

import sys

from experiments.weather.experiment import Config, run
from jaxdl.runs.command import command

if __name__ == "__main__":
    sys.exit(command(Config, run, "python -m experiments.weather"))
