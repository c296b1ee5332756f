"""`python -m benchmarks`: the short form of every benchmark."""

from __future__ import annotations

from benchmarks import (
    expert_placement,
    expert_placement_online,
    gpu_selection,
    gpu_selection_epochs,
    gpu_selection_per_replica,
    gpu_selection_policies,
    gpu_selection_sweeps,
    kv_tiering,
    request_packing,
)

if __name__ == "__main__":
    gpu_selection.main(["--short"])
    print()
    gpu_selection_per_replica.main(["--short"])
    print()
    gpu_selection_sweeps.main(["--short"])
    print()
    gpu_selection_epochs.main(["--short"])
    print()
    gpu_selection_policies.main(["--short"])
    print()
    expert_placement.main(["--short"])
    print()
    expert_placement_online.main(["--short"])
    print()
    kv_tiering.main(["--short"])
    print()
    request_packing.main(["--short"])
