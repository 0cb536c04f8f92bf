"""Pages as files beside this module: self-contained, so that they work without a network."""
