"""python -m experiments.cifar10: one run of the experiment."""

import sys

from experiments.cifar10.experiment import EXPERIMENT, Config
from jaxdl.runs import main

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, Config, "python -m experiments.cifar10"))
