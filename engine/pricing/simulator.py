"""`InvoiceSimulator`: the library's front door, for programs and for documents alike."""

from __future__ import annotations

from collections.abc import Mapping

from engine.pricing.documents import read_inputs
from engine.pricing.invoice import Invoice, InvoiceInput, make_invoice


class InvoiceSimulator:
    """Computes what an invoice would be. It holds nothing: one serves all threads and all tenants."""

    def simulate(
        self, inputs: InvoiceInput | Mapping[str, object] | None = None, /, **fields: object
    ) -> Invoice:
        """The invoice of `inputs`, exact, amounts rounded as Stripe rounds them.

        `inputs` is an InvoiceInput, or a document with the fields customerId, periodStart, periodEnd, usageItems,
        commitments, credits, taxRate and currency. The same fields can be given by keyword, in snake_case.

        Raises PricingError, which names every wrong field, and TypeError when both or neither form is used.
        """
        if (inputs is None) == (not fields):
            message = "give either one InvoiceInput or document, or the fields by keyword"
            raise TypeError(message)
        return make_invoice(read_inputs(fields if inputs is None else inputs))
