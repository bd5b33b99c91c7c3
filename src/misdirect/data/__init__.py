"""Forget and retain text, questions, batches."""
