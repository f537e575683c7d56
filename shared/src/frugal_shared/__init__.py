"""Start the runs of the Frugal Vision packages on one or many processes, and evaluate them."""

__version__ = "0.1.0"
