"""The command line; nothing below knows it."""
