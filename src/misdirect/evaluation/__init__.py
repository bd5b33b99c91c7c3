"""Measurements: a model in, a `Result` out. The model is bit-identical afterwards."""
