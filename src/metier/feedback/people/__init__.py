"""What people say: labelling queues, the page that asks, and the statements that come of it."""
