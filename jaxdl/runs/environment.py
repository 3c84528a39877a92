"""What a script with runs of its own asks of the machine: clocks, versions, and how functions are compiled."""

from jaxdl._environment import compile_clock as compile_clock
from jaxdl._environment import enable_compilation_cache as enable_compilation_cache
from jaxdl._environment import environment as environment
from jaxdl._files import atomic_write as atomic_write
from jaxdl._files import open_regular as open_regular
from jaxdl._jit import jit as jit
from jaxdl._startup import STARTED as STARTED
