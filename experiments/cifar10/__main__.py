"""python -m experiments.cifar10: one run of the experiment."""

import sys

from experiments.cifar10.experiment import Config, run
from jaxdl.runs.command import command

if __name__ == "__main__":
    sys.exit(command(Config, run, "python -m experiments.cifar10"))
