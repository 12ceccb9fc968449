"""The version of this package, on its own so that the wire can name it without a circle."""

__version__ = "0.1.0"
