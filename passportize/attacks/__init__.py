"""Attacks on passports, for honest tests of the scheme: one file each."""
