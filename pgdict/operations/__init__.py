"""What each operation asks PostgreSQL, and what the answer means; no I/O.

An operation is a generator: it *yields* a request (statement, parameters), is *sent* the rows, and *returns* the result.
Whoever drives it holds no connection while the operation itself runs, so the callables and iterables of the caller, which
run inside, may use the same dictionary.
"""

from pgdict.operations import many, one, whole
from pgdict.operations.pages import ByKey, Pages, Size, walk
from pgdict.operations.space import ABSENT, DEFAULT, Operation, Request, Rows, Space, expiry

__all__ = [
    "ABSENT",
    "DEFAULT",
    "ByKey",
    "Operation",
    "Pages",
    "Request",
    "Rows",
    "Size",
    "Space",
    "expiry",
    "many",
    "one",
    "walk",
    "whole",
]
