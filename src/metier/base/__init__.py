"""What everything else stands on: configuration, errors, ids, seeds, clock and executor."""
