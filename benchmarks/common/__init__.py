"""What several benchmarks share, and the tables in README and docs that are made of results."""
