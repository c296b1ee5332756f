"""What `headroom template` writes: a policy and a heuristic for each family and mode, each of which runs as it stands."""
