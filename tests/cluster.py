"""A PostgreSQL of a test's own: on TCP, with passwords, to be killed; and a network to be cut."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgdict.errors import ConfigError
from pgdict.server import binaries, system

PASSWORD = "s3cr3t/w0rd"


class Cluster:
    """A server on a port of 127.0.0.1; its superuser is `boss`."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self._account = system.account(directory)
        self._programs = binaries.find(None)
        if self._account:
            if system.unreachable([self._programs / "postgres"], self._account):
                self._programs = binaries.copied(self._programs, directory)
            shutil.chown(directory, self._account.uid, self._account.gid)
        options = ["--username=boss", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "--locale=C"]
        self._run("initdb", "-D", directory / "data", "--encoding=UTF8", *options).wait(60)
        self.start()
        self.sql(f"ALTER ROLE boss PASSWORD '{PASSWORD}'")

    def _run(self, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._programs / program, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=system.ENVIRONMENT,
            user=self._account.uid if self._account else None,
            group=self._account.gid if self._account else None,
            extra_groups=[] if self._account else None,
            start_new_session=True,
        )

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        settings = ["listen_addresses=127.0.0.1", "max_connections=20", "fsync=off", "shared_buffers=16MB"]
        arguments = [argument for setting in settings for argument in ("-c", setting)]
        deadline = time.monotonic() + 30
        while True:
            place = ["-D", self.directory / "data", "-k", self.directory, "-p", self.port]
            self._server = self._run("postgres", *place, *arguments)
            while self._server.poll() is None:  # a killed server's last processes keep a new one from starting
                with suppress(psycopg.Error):
                    return self.sql("SELECT 1")
                time.sleep(0.02)
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: fast, or with `SIGKILL` as a crash does."""
        self._server.send_signal(how)
        self._server.wait(30)

    def sql(self, *statements: str) -> None:
        """Execute statements as its superuser."""
        with psycopg.connect(host=str(self.directory), port=self.port, user="boss", dbname="postgres", autocommit=True) as c:
            for statement in statements:
                c.execute(statement.encode())

    def url(self, user: str = "boss", password: str = PASSWORD, database: str = "postgres", port: int | None = None) -> str:
        """Return how to connect, over TCP."""
        return f"postgresql://{user}:{password.replace('/', '%2F')}@127.0.0.1:{port or self.port}/{database}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run a cluster for the length of a block."""
    directory = Path(tempfile.mkdtemp(prefix="pgdict-test-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        cluster = Cluster(directory)
    except ConfigError as error:
        shutil.rmtree(directory)
        pytest.skip(str(error))
    try:
        yield cluster
    finally:
        cluster.stop(signal.SIGQUIT)
        shutil.rmtree(directory)


class Proxy:
    """A network between a client and a server that can fail."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self.requests, self.answers = threading.Event(), threading.Event()  # whether they get through
        self.open()
        threading.Thread(target=self._accept, daemon=True).start()

    def open(self) -> None:
        """Let everything through."""
        self.requests.set()
        self.answers.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for source, sink, through in ((client, server, self.requests), (server, client, self.answers)):
                    threading.Thread(target=self._pump, args=(source, sink, through), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, through: threading.Event) -> None:
        with source:
            with suppress(OSError):
                while data := source.recv(65536):
                    through.wait()
                    sink.sendall(data)
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections that there are."""
        sockets, self._sockets = self._sockets, []
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.open()


class Pooler:
    """A pooler in transaction mode, as PgBouncer: each transaction has the connection to the server that was freed last."""

    def __init__(self, url: str, size: int = 3) -> None:
        self._url, self._free = url, queue.LifoQueue[tuple[psycopg.Connection[Any], socket.socket]]()
        for _ in range(size):
            self._connect()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://pooled@127.0.0.1:{self._listener.getsockname()[1]}/pooled?sslmode=disable&gssencmode=disable"
        threading.Thread(target=self._accept, daemon=True).start()

    def _connect(self) -> None:
        connection = psycopg.connect(self._url, autocommit=True)
        server = socket.socket(fileno=os.dup(connection.fileno()))
        server.setblocking(True)
        self._free.put((connection, server))

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError):
            _exactly(client, int.from_bytes(_exactly(client, 4)) - 4)
            settings = b"client_encoding\0UTF8\0", b"server_encoding\0UTF8\0"
            words = [(b"R", bytes(4)), *((b"S", setting) for setting in settings), (b"K", bytes(8)), (b"Z", b"I")]
            client.sendall(b"".join(starmap(_packed, words)))
            names: set[bytes] = set()
            while self._transaction(client, names):
                pass

    def _transaction(self, client: socket.socket, names: set[bytes]) -> bool:
        """Carry one transaction; afterwards, tell whether the client goes on. A client that vanishes inside ends it.

        As PgBouncer since 1.21, it does not forget the names of prepared statements with DEALLOCATE, and takes none twice.
        """
        first = _message(client)
        if first[:1] == b"X":
            return False
        connection, server = self._free.get(timeout=5)
        request, state = first, b""
        try:
            while state != b"I":
                if request[:1] == b"P" and (name := request[5 : request.index(0, 5)]):
                    if name in names:
                        client.sendall(_packed(b"E", b"SFATAL\0C08P01\0Mname is taken\0\0"))
                        raise EOFError
                    names.add(name)
                server.sendall(request)
                if request[:1] in b"QS":  # a query, or the end of a request
                    answer = b""
                    while answer[:1] != b"Z":
                        answer = _message(server)
                        client.sendall(answer)
                    state = answer[5:]
                if state != b"I":
                    request = _message(client)
                    if request[:1] == b"X":
                        raise EOFError
        except BaseException:
            server.close()
            connection.close()
            self._connect()
            raise
        self._free.put((connection, server))
        return True

    def close(self) -> None:
        """End."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        while not self._free.empty():
            connection, server = self._free.get()
            server.close()
            connection.close()


def _packed(kind: bytes, word: bytes) -> bytes:
    return kind + (len(word) + 4).to_bytes(4) + word


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, int.from_bytes(head[1:]) - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := source.recv(size - len(data))):
            raise EOFError
        data += more
    return data
