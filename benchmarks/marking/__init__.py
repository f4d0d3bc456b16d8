"""Marking of trained models."""
