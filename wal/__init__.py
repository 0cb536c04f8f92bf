"""The write-ahead log and what is derived from it, as bytes: knows nothing of events, metrics or HTTP."""
