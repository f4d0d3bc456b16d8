"""Files and interruptions that nobody wishes for, counted."""
