"""Billing drivers: how a push request reaches Stripe, by stripe-python under trio.

They fill the port `engine.ports.Billing` and are public: usable alone, without a meter. They must not know the log,
the plan or actors.
"""
