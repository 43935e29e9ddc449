"""The largest and the smallest elements of a stream: outliers of a token."""

from hdl.topk.orizuru import Orizuru
from hdl.topk.sorted_list import SortedLists

__all__ = ["Orizuru", "SortedLists"]
