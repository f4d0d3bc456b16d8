"""The tables of the field, each a command: what protection costs, and what attacks leave of it."""
