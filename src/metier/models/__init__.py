"""Models as they are given: where they come from, how text becomes tokens, what they compute."""
