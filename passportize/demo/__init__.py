"""The demo: protect a small network, train it on real images, strip it, prove whose it is."""

from passportize.demo.showing import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
