"""Pure: no trio, no clock, no randomness, no files. Every function here gives the same answer for the same arguments."""
