"""`pgdict bench`: what PgDict costs beside what others need for the same, in one run on one machine."""

from pgdict.bench.engine import Report, Result, run
from pgdict.bench.groups import FULL, NORMAL, QUICK, Scale

__all__ = ["FULL", "NORMAL", "QUICK", "Report", "Result", "Scale", "run"]
