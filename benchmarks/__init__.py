"""Speed, memory and gap beside the baselines; never part of the tests. `python -m benchmarks` runs the short ones."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does
