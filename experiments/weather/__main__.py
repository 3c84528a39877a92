"""The command `python -m experiments.weather`: run the experiment once."""

import sys

from experiments.weather.experiment import Config, experiment
from jaxdl.runs import main

if __name__ == "__main__":
    sys.exit(main(experiment, Config, "python -m experiments.weather"))
