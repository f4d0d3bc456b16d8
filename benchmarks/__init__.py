"""What passportize costs, proves and covers, measured; README.md has the questions and commands."""
