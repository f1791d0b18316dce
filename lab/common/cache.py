# SPDX-License-Identifier: Apache-2.0
"""The products of the lab: folders named by a hash of their inputs."""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.common.steps import say, step

_KEY_DIGITS = 12


def cache_dir() -> Path:
    """The folder of all products; it is created if missing."""
    own = os.environ.get("IPITRACE_LAB_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(own) if own else Path(base) / "ipitrace-lab"
    directory.mkdir(parents=True, exist_ok=True)
    return directory.resolve()


def product(name: str, inputs: object, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills; it is built only if none with the same inputs exists.

    Args:
        name: the name of the product and of its step.
        inputs: anything that json can write; the key is made of it and the text of `build`.
            The name of an input product's folder represents its contents.
        build: fills the given empty folder. The folder is renamed after `build`, and must not
            contain its own path.

    Raises:
        LabError: `build` failed.
    """
    text = json.dumps([inputs, inspect.getsource(build)], sort_keys=True, default=_folder_name)
    key = hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]
    finished = cache_dir() / f"{name}-{key}"
    unfinished_prefix = f".new-{finished.name}-"
    with (cache_dir() / f".lock-{finished.name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if finished.is_dir():
            say(f"{name}: reused")
            return finished
        # left by a build that was killed
        for abandoned in cache_dir().glob(f"{unfinished_prefix}*"):
            shutil.rmtree(abandoned)
        with step(name):
            unfinished = Path(tempfile.mkdtemp(prefix=unfinished_prefix, dir=cache_dir()))
            unfinished.chmod(0o755)
            try:
                build(unfinished)
            except BaseException:
                shutil.rmtree(unfinished)
                raise
            unfinished.rename(finished)
    return finished


def _folder_name(value: object) -> str:
    if not isinstance(value, Path):
        raise TypeError(value)
    return value.name
