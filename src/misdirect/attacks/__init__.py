"""Attacks on an unlearned model. Each is a function over one `LM`; the same is done to the base as the control."""
