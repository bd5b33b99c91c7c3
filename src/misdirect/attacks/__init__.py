"""Attacks on an unlearned model, each also done to the base as the control."""
