# SPDX-License-Identifier: Apache-2.0
import io
import time

import pytest

from ipitrace.render.progress import ProgressBar, Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until it is set."""
    at = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: at[0])
    return at


def test_nothing_is_drawn_in_the_first_second(now: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(stream=terminal) as bar:
        bar.show("self", 0.1)
        now[0] += 0.99
        bar.show("self", 0.9)
    assert terminal.getvalue() == ""


def test_the_bar_is_drawn_and_wiped_away(now: list[float]) -> None:
    terminal = Terminal()
    with ProgressBar(stream=terminal) as bar:
        now[0] += 1.01
        bar.show("unicast-running", 0.5)
        drawn = terminal.getvalue()
        assert "50%" in drawn
        assert "unicast-running" in drawn
        assert drawn.count("#") == drawn.count(".")
        assert "\n" not in drawn
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_the_bar_is_wiped_away_when_the_work_fails(now: list[float]) -> None:
    terminal = Terminal()
    bar = ProgressBar(stream=terminal)

    def work() -> None:
        with bar:
            now[0] += 2
            bar.show("self", 1.0)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(("share", "shown"), [(-0.1, "  0%"), (0.0, "  0%"), (1.3, "100%")])
def test_the_share_stays_within_the_bar(now: list[float], share: float, shown: str) -> None:
    terminal = Terminal()
    with ProgressBar(stream=terminal) as bar:
        now[0] += 2
        bar.show("self", share)
        drawn = terminal.getvalue()
    assert len(drawn.partition("[K[")[2].partition("]")[0]) == 30
    assert shown in drawn


@pytest.mark.parametrize("enabled", [True, False])
def test_never_in_a_pipe_and_never_when_quiet(now: list[float], enabled: bool) -> None:  # noqa: FBT001
    stream = io.StringIO() if enabled else Terminal()
    with ProgressBar(enabled=enabled, stream=stream) as bar:
        now[0] += 5
        bar.show("self", 0.5)
    assert stream.getvalue() == ""


def test_a_step_counts_its_seconds_and_is_wiped_away(now: list[float]) -> None:
    terminal = Terminal()
    with Steps(terminal).step("building") as tick:
        assert terminal.getvalue().endswith("building, 0 s")
        now[0] += 0.9
        tick()
        assert terminal.getvalue().endswith("building, 0 s")
        now[0] += 2.2
        tick()
        tick()
    assert terminal.getvalue().count("building, 3 s") == 1
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_in_a_pipe_a_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(io.StringIO()).step("building") as tick:
        assert capsys.readouterr().err == "building\n"
        tick()
    assert capsys.readouterr().err == ""
