"""Task families: what is asked, the environments behind it, and gold demonstrations."""
