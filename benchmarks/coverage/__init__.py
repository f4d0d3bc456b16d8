"""Which models the library takes: swapped and restored exactly, under timm's own tests too."""
