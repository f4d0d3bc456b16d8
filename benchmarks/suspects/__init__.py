"""In what kinds of files a signature can be read."""
