"""Independent answers by enumeration. Nothing here imports `evaluate`, a model, a bound or a solver."""
