"""A model's forward pass as a graph, on shapes alone. Knows nothing of passports."""

from passportize.tracing.example_inputs import ExampleInputs
from passportize.tracing.trace import Trace, trace_model

__all__ = ["ExampleInputs", "Trace", "trace_model"]
