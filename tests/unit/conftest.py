# SPDX-License-Identifier: Apache-2.0
"""/proc and /sys trees, made up or of captured hosts; the schema of JUnit XML."""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import xmlschema

from ipitrace.host.files import HostFiles

DATA = Path(__file__).parent / "host" / "data"


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[[Mapping[str, str]], HostFiles]:
    """A tree from path to text; "-> x" makes a (dangling) symbolic link to x."""

    def make(contents: Mapping[str, str]) -> HostFiles:
        for path, text in contents.items():
            at = tmp_path / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                at.symlink_to(text.removeprefix("-> "))
            else:
                at.write_text(text)
        return HostFiles(tmp_path)

    return make


@pytest.fixture
def captured(make_files: Callable[[Mapping[str, str]], HostFiles]) -> Callable[[str], HostFiles]:
    """The tree of a captured host: data/NAME.txt as `tail -n +1 FILE...` prints it."""

    def unpack(name: str) -> HostFiles:
        text = (DATA / f"{name}.txt").read_text()
        _, *pieces = re.split(r"(?m)^==> (\S+) <==\n", text)
        return make_files(dict(zip(pieces[::2], pieces[1::2], strict=True)))

    return unpack


@pytest.fixture(scope="session")
def jenkins_schema() -> xmlschema.XMLSchema:
    """The schema of Jenkins' xunit plugin, junit-10.xsd; pytest's source archive carries it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipitrace-test"
    kept = cache / f"pytest-{pytest.__version__}-junit-10.xsd"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as scratch:
            archive = _source_of_pytest(Path(scratch))
            with tarfile.open(archive) as tar:
                (member,) = [m for m in tar.getmembers() if m.name.endswith("/junit-10.xsd")]
                file = tar.extractfile(member)
                assert file is not None
                cache.mkdir(parents=True, exist_ok=True)
                part = kept.with_suffix(f".{os.getpid()}")
                part.write_bytes(file.read())
                part.rename(kept)
    return xmlschema.XMLSchema(str(kept))


def _source_of_pytest(directory: Path) -> Path:
    words = ("download", "--quiet", "--no-deps", "--no-binary", "pytest", "--dest", directory)
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, f"pytest=={pytest.__version__}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "CI" not in os.environ:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (archive,) = directory.glob("pytest-*.tar.gz")
    return archive
