"""The notebooks run, and what is committed of them is what they said.

`python tests/test_notebooks.py [FILE ...]` runs them and writes their outputs anew.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import remove_server

nbformat: Any = pytest.importorskip("nbformat", reason="nbformat is missing")
nbclient: Any = pytest.importorskip("nbclient", reason="nbclient is missing")
for needed in ("ipykernel", "matplotlib", "pandas"):
    pytest.importorskip(needed, reason=f"{needed} is missing")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PLACE = re.compile(r"""(?<![\w.:/<~])/(?:[\w.+-]+/)+[\w.+-]+|[A-Z]:\\\\|postgres(?:ql)?://\S*@""")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that run notebooks
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a notebook keeps its data: a place that root's server can reach, too."""
    new = Path(tempfile.mkdtemp(prefix="pgdict-notebook-", dir="/tmp"))
    new.chmod(0o711)
    yield new
    remove_server(new)


def executed(path: Path, directory: Path) -> Any:
    """Run a notebook from its top, in a kernel of its own, and return it with its outputs."""
    notebook = read(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(directory)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    return notebook


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[tuple[str, ...]]:
    """Return what a cell has put out: of results and plots their formats, of prints where to."""
    return [(output.output_type, output.get("name", ""), *sorted(output.get("data", ()))) for output in cell.outputs]


def test_there_are_notebooks() -> None:
    """The notebooks that the README speaks of are here."""
    assert {path.stem for path in NOTEBOOKS} >= {"quickstart", "memoize", "queues_and_limits", "sql", "benchmark"}


@pytest.mark.slow
@pytest.mark.timeout(400)
@every_notebook
def test_runs(path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook runs on an embedded server without an error or a warning, and what is committed of it is what it puts out."""
    monkeypatch.setenv("PGDICT_URL", "postgresql://127.0.0.1:1/not-this-one")
    notebook = executed(path, directory)
    said = [output.text for cell in code(notebook) for output in cell.outputs if output.get("name") == "stderr"]
    assert not [text for text in said if "Warning" in text or "Error" in text]
    committed = code(read(path))
    assert [kinds(cell) for cell in code(notebook)] == [kinds(cell) for cell in committed]


@every_notebook
def test_committed(path: Path) -> None:
    """A notebook is committed as one run from its top has left it: every cell run in order, without an error."""
    cells = code(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) > len(cells) / 2
    assert not [output for output in outputs if output.output_type == "error"]


@every_notebook
def test_no_machine(path: Path) -> None:
    """Nothing in a notebook tells of the machine that it ran on."""
    notebook = read(path)
    texts = [text for cell in code(notebook) for output in cell.outputs for text in written(output)]
    assert not [found[0] for text in texts for found in PLACE.finditer(text)]
    assert notebook.metadata == METADATA
    assert not [cell.metadata for cell in notebook.cells if cell.metadata]


def written(output: Any) -> list[str]:
    """Return the texts of an output; plots are none."""
    data = output.get("data", {})
    return [output.get("text", ""), *(text for kind, text in data.items() if kind.startswith("text/"))]


if __name__ == "__main__":
    for file in [Path(name) for name in sys.argv[1:]] or NOTEBOOKS:
        place = Path(tempfile.mkdtemp(prefix="pgdict-notebook-", dir="/tmp"))
        place.chmod(0o711)
        result = executed(file, place)
        result.metadata = METADATA
        for each in result.cells:
            each.metadata = {}
        nbformat.write(result, file)
        remove_server(place)
