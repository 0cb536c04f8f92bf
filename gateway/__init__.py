"""The only place that knows HTTP, and the composition root."""
