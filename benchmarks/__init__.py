"""Speed, memory and gap beside the baselines; never part of the tests. `python -m benchmarks` runs the short ones."""
