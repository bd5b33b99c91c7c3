"""`python -m misdirect`."""

from misdirect.interrupts import entry

if __name__ == "__main__":
    entry()
