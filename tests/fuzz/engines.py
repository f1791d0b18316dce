# SPDX-License-Identifier: Apache-2.0
"""Where inputs come from: atheris (libFuzzer, led by coverage), else Hypothesis.

An engine calls `one` for ever; `one` ends the process.
"""

import importlib.util
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from .corpus import LONGEST_INPUT_BYTES, Fuzz, load

One = Callable[[bytes], None]
_EXAMPLES = 2_000  # of Hypothesis before it starts anew: it remembers every one
_LONGEST_TEXT = 512


def default_engine() -> str:
    """atheris, where it is installed."""
    return "atheris" if importlib.util.find_spec("atheris") else "hypothesis"


def load_instrumented(name: str, engine: str) -> Fuzz:
    """The target; with atheris, every line of ipitrace that it reaches is told to libFuzzer."""
    if engine != "atheris":
        return load(name)
    import atheris  # noqa: PLC0415 - not on every Python

    with atheris.instrument_imports(include=["ipitrace"]):
        return load(name)


def feed(engine: str, one: One, seeds: Sequence[Path], scratch: Path, seed: int) -> None:
    """Call `one` with inputs until it ends the process."""
    if engine == "atheris":
        _feed_by_atheris(one, seeds, scratch, seed)
    else:
        _feed_by_hypothesis(one, [path.read_bytes() for path in seeds], seed)


def _feed_by_atheris(one: One, seeds: Sequence[Path], scratch: Path, seed: int) -> None:
    import atheris  # noqa: PLC0415 - not on every Python

    corpus = scratch / "corpus"
    corpus.mkdir()
    for path in seeds:
        (corpus / path.name).write_bytes(path.read_bytes())
    # Time and memory are watched outside, for every engine alike.
    words = [
        *("ipitrace", f"-max_len={LONGEST_INPUT_BYTES}", "-timeout=1000000", "-rss_limit_mb=0"),
        *("-len_control=20", f"-seed={seed}", f"-artifact_prefix={scratch}/", str(corpus)),
    ]
    atheris.Setup(words, one)
    atheris.Fuzz()


def _feed_by_hypothesis(one: One, seeds: Sequence[bytes], seed: int) -> None:
    from hypothesis import HealthCheck, Phase, given, settings  # noqa: PLC0415 - as above
    from hypothesis import seed as seeded  # noqa: PLC0415
    from hypothesis import strategies as st  # noqa: PLC0415

    edits = st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=8)), max_size=4
    )
    made = st.binary(max_size=_LONGEST_TEXT)
    changed = st.builds(_edited, st.sampled_from(list(seeds) or [b""]), edits)
    rules = settings(
        max_examples=_EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    numbers = random.Random(seed)  # noqa: S311 - no secret
    for content in seeds:
        one(content)
    while True:
        seeded(numbers.getrandbits(32))(rules(given(made | changed)(one)))()


def _edited(content: bytes, edits: Sequence[tuple[float, int, bytes]]) -> bytes:
    """`content` with some bytes replaced; an edit is where, how many bytes go, what comes."""
    for share, gone, put in edits:
        at = int(share * len(content))
        content = content[:at] + put + content[at + gone :]
    return content[:LONGEST_INPUT_BYTES]
