"""The weight that each norm is bound to: how it is searched for, and why there may be none."""

from passportize.anchors.search import AnchorSearch, find_anchors

__all__ = ["AnchorSearch", "find_anchors"]
