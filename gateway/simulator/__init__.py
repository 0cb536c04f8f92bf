"""A stateful stand-in for the part of Stripe that usage billing touches; it ships with the product.

It must not know the engine: what it holds is what was sent to it over HTTP, so that it can prove the engine wrong.
"""
