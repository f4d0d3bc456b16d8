"""Examples to run as they are: ``python examples/pointnet.py``; a benchmark takes its model."""
