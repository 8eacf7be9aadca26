"""Who takes part: one small adapter each, with the operations that it has of its own.

The bound methods themselves are measured wherever they fit, so that an adapter costs its contestant nothing.
"""

from functools import partial

from pgdict.bench.contestants.local import open_dict, open_diskcache, open_joblib, open_shelve, open_sqlitedict
from pgdict.bench.contestants.ours import open_pgdict
from pgdict.bench.contestants.postgresql import open_copy, open_pgbench, open_psycopg
from pgdict.bench.contestants.remote import open_redis
from pgdict.bench.contestants.store import OURS, PART, PREFIX, TABLE, Arena, Contestant, Missing, Store, value

__all__ = ["CONTESTANTS", "OURS", "PART", "PREFIX", "TABLE", "Arena", "Contestant", "Missing", "Store", "value"]

CONTESTANTS = (
    Contestant(OURS, partial(open_pgdict, "unlogged")),
    Contestant("PgDict async", partial(open_pgdict, "async")),
    Contestant("PgDict sync", partial(open_pgdict, "sync")),
    Contestant("psycopg", open_psycopg),
    Contestant("COPY", open_copy),
    Contestant("pgbench", open_pgbench),
    Contestant("Redis", open_redis),
    Contestant("diskcache", open_diskcache),
    Contestant("sqlitedict", open_sqlitedict),
    Contestant("shelve", open_shelve),
    Contestant("joblib", open_joblib),
    Contestant("dict", open_dict),
)
