"""How often verifiers themselves are wrong: cases with known verdicts, made and given, and what comes of them."""
