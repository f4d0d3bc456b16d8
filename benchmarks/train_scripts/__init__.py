"""timm's own train scripts, unedited, of several versions, with a passport."""
