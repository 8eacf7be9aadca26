"""Where the data is: an argument, the environment, or a PostgreSQL of our own.

`locate` turns what the user wrote into a connection string or a directory, `join` turns a directory into a running
server that every process using it shares.
"""

from pgdict.server.embedded import Embedded, join
from pgdict.server.location import as_url, locate, mask

__all__ = ["Embedded", "as_url", "join", "locate", "mask"]
