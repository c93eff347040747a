"""Numbers to a page: reads the ledger and the event log, writes one HTML file."""
