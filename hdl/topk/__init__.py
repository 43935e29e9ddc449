"""The largest and the smallest elements of a stream: outliers of a token."""

from hdl.topk.orizuru import Orizuru

__all__ = ["Orizuru"]
