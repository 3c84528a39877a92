"""The command `python -m experiments.cifar10`: run the experiment once."""

import sys

from experiments.cifar10.experiment import EXPERIMENT, Config
from jaxdl.runs import main

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, Config, "python -m experiments.cifar10"))
