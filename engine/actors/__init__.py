"""One file per kind of task; supervisor.py draws the tree of their lifetimes."""
