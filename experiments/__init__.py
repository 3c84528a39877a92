"""The experiments: each a configuration, a pure function that builds from it, and a short main."""

import gc
import time

# Here, because Python reads this file before an experiment's own imports, which are what takes the time.
STARTED = time.perf_counter()
# Imports and traces make hundreds of thousands of lasting objects. To look through them again and again for garbage
# takes an eighth of a short run's time.
gc.set_threshold(100_000, 50, 100)

import jaxdl  # noqa: E402, F401  (first of what takes time: from here on Ctrl-C ends in one line)
