"""Data sets as Examples: found, read and checked, or simulated where the best forecast should be known."""

from jaxdl.datasets.cifar10 import cifar10 as cifar10
from jaxdl.datasets.images import Images as Images
from jaxdl.datasets.simulated_weather import simulated_table as simulated_table
from jaxdl.datasets.weather import Dataset as Dataset
from jaxdl.datasets.weather import weather as weather
