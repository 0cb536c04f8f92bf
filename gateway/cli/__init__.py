"""The stripemeter command: one file per sub-command."""
