"""What released weights prove, to whom, and what a thief can do about it."""
