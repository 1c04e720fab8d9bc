"""Learned fusion networks, one a file. Each has `encode` and `decode`, and a table of its published tensor names."""
