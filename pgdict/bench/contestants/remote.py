"""Redis: the one that `REDIS_URL` names, or one of our own on a unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pgdict.bench.contestants.store import PAGE, PREFIX, Arena, Missing, Pairs, Store, batches, module_of


@contextmanager
def open_redis(arena: Arena) -> Iterator[Store]:
    """Connect to Redis, or start one."""
    redis = module_of("redis")
    with ExitStack() as stack:
        if url := os.environ.get("REDIS_URL"):
            client = stack.enter_context(redis.Redis.from_url(url))
            way, crash = url.split(":")[0], "as its server is set up"
        else:
            client = stack.enter_context(redis.Redis(unix_socket_path=stack.enter_context(_redis_server(arena.directory))))
            way, crash = "unix socket", "everything: it keeps nothing on disk, as it is set up here"
        _await(redis, client)

        def pairs(prefix: str, count: int) -> Pairs:
            for keys in batches(client.scan_iter(match=f"{prefix}*", count=count), count):
                yield from zip(keys, client.mget(keys), strict=True)

        def fill(items: Mapping[str, str]) -> None:
            for batch in batches(items.items(), 10_000):
                client.mset(dict(batch))

        def clear() -> None:
            for keys in batches(client.scan_iter(match=f"{PREFIX}:*", count=10_000), 10_000):
                client.unlink(*keys)

        if url:
            stack.callback(clear)
        parser = f"hiredis {version('hiredis')}" if _installed("hiredis") else "without hiredis"
        begin = client.info("memory")["used_memory"]
        yield Store(
            version=f"{client.info('server')['redis_version']}, redis-py {version('redis')}, {parser}, {way}",
            crash=crash,
            module="redis",
            standard=way == "unix socket" and _installed("hiredis"),
            get=client.get,
            miss=client.get,
            set=client.set,
            set_ttl=lambda key, v: client.set(key, v, ex=3600),
            has=client.exists,
            delete=client.delete,
            increment=client.incr,
            get_many=client.mget,
            set_many=client.mset,
            fill=fill,
            clear=clear,
            items=lambda: pairs(f"{PREFIX}:", 5000),
            scan=lambda prefix: pairs(prefix, PAGE),
            size=lambda: int(client.info("memory")["used_memory"] - begin),
        )


def _installed(name: str) -> bool:
    with suppress(Missing):
        return bool(module_of(name))
    return False


@contextmanager
def _redis_server(directory: Path) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("REDIS_URL is not set, and redis-server is not on PATH")
    socket = str(directory / "redis.sock")
    options = {"--port": "0", "--unixsocket": socket, "--save": "", "--appendonly": "no", "--dir": str(directory)}
    command = [program, *(word for option in options.items() for word in option)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield socket
        finally:
            server.terminate()


def _await(redis: Any, client: Any) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            client.ping()
        except redis.RedisError as error:
            if time.monotonic() > deadline:
                raise Missing(f"Redis does not answer: {error}") from None
            time.sleep(0.02)
        else:
            return
