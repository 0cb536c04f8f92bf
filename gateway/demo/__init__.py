"""`stripemeter demo`: a story in which much goes wrong and every number is right in the end.

It is a user like any other: it drives real processes over HTTP and the command line. It must not know the engine.
"""
