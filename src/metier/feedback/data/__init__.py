"""From feedback to data: declared views of the ledger, cleaned, kept apart from the tests, and shown on a card."""
