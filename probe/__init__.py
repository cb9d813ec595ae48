"""Facts: what a machine has, how it is wired, and where each number came from."""

__version__ = "0.1.0"
