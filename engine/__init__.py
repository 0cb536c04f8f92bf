"""The meter: the pure core that counts, and the actors that keep it running; knows nothing of HTTP."""
