"""Measurements: a model in, a `Result` out; the model is bit-identical afterwards."""
