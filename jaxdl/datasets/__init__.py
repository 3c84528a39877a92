"""Load the weather of Basel and CIFAR-10, from files or downloads, or simulate them."""

from jaxdl._exports import set_public_names as _set_public_names
from jaxdl.datasets._cifar10 import load_cifar10 as load_cifar10
from jaxdl.datasets._cifar10_files import ImageData as ImageData
from jaxdl.datasets._simulated_weather import simulated_weather as simulated_weather
from jaxdl.datasets._weather import BASEL as BASEL
from jaxdl.datasets._weather import LABEL_SUFFIX as LABEL_SUFFIX
from jaxdl.datasets._weather import TARGET as TARGET
from jaxdl.datasets._weather import WeatherData as WeatherData
from jaxdl.datasets._weather import load_weather as load_weather
from jaxdl.datasets._weather import place_of as place_of
from jaxdl.datasets._weather import terms_of as terms_of

_set_public_names(globals())
