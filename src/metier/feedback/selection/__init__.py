"""What to ask people next: the items whose answers are worth most per second, each drawn with a known chance."""
