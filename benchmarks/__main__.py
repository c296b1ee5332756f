"""`python -m benchmarks`: the short form of every benchmark."""

from __future__ import annotations

from benchmarks import gpu_selection

if __name__ == "__main__":
    gpu_selection.main(["--short"])
