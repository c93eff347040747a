"""The ledger: every record of a run, what came from what, and the log of events."""
