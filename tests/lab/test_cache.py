# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from lab.common.cache import cache_dir, product
from lab.common.steps import LabError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("IPITRACE_LAB_CACHE", str(tmp_path))
    return tmp_path


def test_a_product_is_made_once_and_again_for_other_inputs() -> None:
    made: list[Path] = []

    def build(directory: Path) -> None:
        made.append(directory)
        (directory / "file").write_text("whole")

    first = product("thing", {"suite": "a"}, build)
    assert (first / "file").read_text() == "whole"
    assert product("thing", {"suite": "a"}, build) == first
    assert len(made) == 1
    assert product("thing", {"suite": "b"}, build) != first
    assert len(made) == 2


def test_another_recipe_is_another_product() -> None:
    def one(directory: Path) -> None:
        (directory / "one").touch()

    def two(directory: Path) -> None:
        (directory / "two").touch()

    assert product("thing", [], one) != product("thing", [], two)


def test_what_an_input_was_made_from_counts(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "file").touch()

    assert product("thing", [tmp_path / "a-1"], build) != product(
        "thing", [tmp_path / "a-2"], build
    )
    assert product("thing", [tmp_path / "a-1"], build) == product("thing", [Path("a-1")], build)


def test_an_interrupted_build_leaves_nothing(cache: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        product("thing", [], build)
    assert not [file for file in cache.iterdir() if file.is_dir()]


def test_what_a_killed_build_left_is_cleared_away(cache: Path) -> None:
    killed: list[Path] = []

    def build(directory: Path) -> None:
        if not killed:
            killed.append(directory)
            raise KeyboardInterrupt
        (directory / "whole").touch()

    with pytest.raises(KeyboardInterrupt):
        product("thing", [], build)
    killed[0].mkdir()
    (killed[0] / "half").touch()
    whole = product("thing", [], build)
    assert [file.name for file in whole.iterdir()] == ["whole"]
    assert [file for file in cache.iterdir() if file.is_dir()] == [whole]


def test_a_failed_step_is_named() -> None:
    def build(_: Path) -> None:
        raise LabError("no mirror")

    with pytest.raises(LabError, match="thing: no mirror"):
        product("thing", [], build)


def test_the_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IPITRACE_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/ipitrace-lab"
