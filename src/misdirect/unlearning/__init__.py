"""Unlearning methods: data and a model in, a `Delta` out."""
