"""What a script with runs of its own asks of the machine: clocks, versions, and how functions are compiled."""

from jaxdl._environment import compile_clock as compile_clock
from jaxdl._environment import keep_compilations as keep_compilations
from jaxdl._environment import surroundings as surroundings
from jaxdl._files import atomic_write as atomic_write
from jaxdl._files import open_regular as open_regular
from jaxdl._jit import program as program
from jaxdl._startup import STARTED as STARTED
