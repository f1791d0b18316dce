# SPDX-License-Identifier: Apache-2.0
"""tests/conftest.py: a missing requirement skips, or fails where it is required.

Each test runs pytest in a process of its own that drops root before the check, so that what
is reported missing is really missing.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

RunLive = Callable[..., pytest.RunResult]

CONFTEST = Path(__file__).parents[2] / "conftest.py"
CHECKOUT = CONFTEST.parents[1]

DROP_ROOT = """
import os
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup():
    euid = os.geteuid()
    os.seteuid(euid or 65534)
    try:
        return (yield)
    finally:
        os.seteuid(euid)
"""

LIVE_TEST = """
import pytest

@pytest.mark.live{needs}
def test_live():
    pass
"""


@pytest.fixture
def run_live(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> RunLive:
    """Run one live test with the real conftest; `needs` is what stands behind `live`."""
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini("[pytest]\nmarkers = live\nfilterwarnings = error\n")
    pytester.makepyfile(drop_root=DROP_ROOT)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))

    def run(needs: str, require: str, *, drop_root: bool = True) -> pytest.RunResult:
        monkeypatch.setenv("IPITRACE_REQUIRE", require)
        pytester.makepyfile(test_it=LIVE_TEST.format(needs=needs))
        options = ("-p", "drop_root") if drop_root else ()
        return pytester.runpytest_subprocess("-ra", "-p", "no:cacheprovider", *options)

    return run


def test_a_missing_requirement_skips(run_live: RunLive) -> None:
    result = run_live('("root")', "")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*root: the effective user id is *"])


def test_the_bare_marker_needs_root_too(run_live: RunLive) -> None:
    result = run_live("", "")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*root: the effective user id is *"])


def test_a_missing_requirement_fails_where_it_is_required(run_live: RunLive) -> None:
    result = run_live("", "kvm, root")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*required by IPITRACE_REQUIRE: root: the effective user id is *"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_what_a_test_does_not_ask_for_cannot_fail_it(run_live: RunLive) -> None:
    result = run_live('("bpf")', "root")
    assert "root:" not in result.stdout.str()
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.live
def test_a_machine_that_has_everything_runs_the_test(run_live: RunLive) -> None:
    result = run_live("", "root,kvm,bpf", drop_root=False)
    result.assert_outcomes(passed=1)


def test_an_unknown_required_name_is_an_error(run_live: RunLive) -> None:
    result = run_live("", "root,vkm")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*IPITRACE_REQUIRE: unknown name 'vkm'; choose from root, kvm, bpf"]
    )


def test_an_unknown_name_in_the_marker_is_an_error(run_live: RunLive) -> None:
    result = run_live('("vkm")', "")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_live: unknown name 'vkm'; choose from root, kvm, bpf"])
