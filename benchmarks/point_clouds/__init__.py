"""Point clouds: a PointNet on real solids, and public code as its authors wrote it."""
