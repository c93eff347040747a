"""Verifiers: code that makes one verdict about one episode."""
