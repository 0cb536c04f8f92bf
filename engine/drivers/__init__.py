"""Billing drivers: how a push request reaches Stripe, by stripe-python under trio.

`StripeBilling` fills the port `engine.ports.Billing` for one key, `engine.drivers.remote` by a process that runs it;
`StripeBillingDriver` is for use alone, without a meter; `ResolutionCache` remembers what subscription items are. They must not know the log, the plan or actors.
"""

from engine.drivers.billing import StripeBilling, api_version
from engine.drivers.cached import ResolutionCache
from engine.drivers.standalone import StripeBillingDriver

__all__ = ["ResolutionCache", "StripeBilling", "StripeBillingDriver", "api_version"]
