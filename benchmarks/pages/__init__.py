"""The pages that are made of all results: docs/results.md, and the table in README.md."""
