"""What is said about episodes: verifiers, verdicts, and the rewards made of them."""
