# SPDX-License-Identifier: Apache-2.0
"""Recordings on disk, and `ipitrace compare` of them."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path

from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from runs import made_host

from ipitrace.base.errors import ExitCode, IpitraceError
from ipitrace.commands.compare import compare
from ipitrace.recording.result import RunResult
from ipitrace.recording.writer import RecordingWriter


def record(directory: Path, run: RunResult) -> Path:
    with RecordingWriter(directory, force=False) as writer:
        writer.finish(run)
    return directory


def host(run: RunResult, **fingerprint: object) -> RunResult:
    return replace(run, host=made_host(**fingerprint))


def invoke(places: Mapping[str, Path], *words: object, env: dict[str, str] | None = None) -> Result:
    known = [str(places.get(str(word), word)) for word in words]
    return CliRunner().invoke(compare, known, env=env, standalone_mode=False)


def code_of(done: Result) -> ExitCode:
    if isinstance(done.exception, IpitraceError):
        return done.exception.exit_code
    assert done.exception is None, done.exception
    return ExitCode(done.return_value)


@functools.cache
def schema() -> Draft202012Validator:
    text = resources.files("ipitrace").joinpath("schemas/compare.schema.json").read_text()
    Draft202012Validator.check_schema(json.loads(text))
    return Draft202012Validator(
        json.loads(text), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
