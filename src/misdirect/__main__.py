"""`python -m misdirect`."""

from misdirect.signals import entry

if __name__ == "__main__":
    entry()
