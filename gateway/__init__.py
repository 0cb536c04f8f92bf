"""The only place that knows HTTP, and the composition root."""

__version__ = "0.1.0"
