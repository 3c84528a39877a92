"""The experiments: each a configuration, a pure function that builds from it, and a short main."""

import time

# Here, because Python reads this file before an experiment's own imports, which are what takes the time.
STARTED = time.perf_counter()
