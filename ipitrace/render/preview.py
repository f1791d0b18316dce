# SPDX-License-Identifier: Apache-2.0
"""What a dry run reports, in each format."""

import json
from collections.abc import Iterator

from ipitrace.base.console import PIPE_WIDTH
from ipitrace.measure.preview import Attaching, Preview
from ipitrace.render.grid import fill

_LABEL = 9  # columns


def render_preview(preview: Preview, width: int = PIPE_WIDTH) -> str:
    """What the run would do, as text of `width` columns."""
    return "\n".join(_filled(line, width) for line in _lines(preview)) + "\n"


def render_preview_json(preview: Preview) -> str:
    """The same as one JSON document."""
    return json.dumps(preview.to_dict(), indent=2) + "\n"


def _filled(line: str, width: int) -> str:
    label = line[:_LABEL]
    return fill(line[_LABEL:], width, label) if line[_LABEL - 1 : _LABEL] == " " else line


def _lines(preview: Preview) -> Iterator[str]:
    guest, sending = preview.guest, preview.sending
    yield "Dry run: nothing was done. This is what the run would do."
    yield ""
    yield f"guest    {guest.what}"
    threads = ", ".join(map(str, guest.threads)) or "unknown before the guest runs"
    yield f"         process {guest.pid or '-'}; threads of its vCPUs: {threads}"
    yield ""
    yield from _attaching(preview.attaching)
    yield ""
    total = f"{sending.sends:,} sends in {sending.storms} storms, warm-up included"
    least = f"{sending.least_seconds:.1f} s or more, from the pace alone"
    yield f"send     {total}; {least}"
    for storm in sending.scenarios:
        targets = "its targets" if storm.targets is None else f"{storm.targets} target"
        targets += "s" if storm.targets not in {None, 1} else ""
        yield (
            f"         {storm.name}: {storm.sends:,} sends to {targets}, "
            f"{storm.repetitions} repetitions in each mode ({', '.join(sending.modes)}), pace "
            f"{storm.pace_cycles} cycles: at most {storm.most_per_s:,.0f} per second"
        )
    yield from (f"         {name}: not sent, {why}" for name, why in sending.unsupported.items())
    yield f"         limits: {sending.limits}"
    yield ""
    yield "inside   steps in the guest, or to create it:"
    yield from (f"         {step}" for step in preview.inside)
    yield ""
    yield f"write    {preview.writing}"
    yield ""
    yield "rights   this process"
    for right in preview.rights:
        yield f"         {'has  ' if right.lacking is None else 'LACKS'} {right.what}" + (
            f": {right.lacking}" if right.lacking else ""
        )


def _attaching(attaching: Attaching) -> Iterator[str]:
    if attaching.why_nothing is not None:
        yield f"attach   nothing: {attaching.why_nothing}"
        return
    yield (
        f"attach   {len(attaching.programs)} BPF programs in the mode evidence, those of the "
        "stages also in the mode stages; they ignore every thread except those of the guest's vCPUs"
    )
    yield from (f"         {name} ({how})" for name, how in attaching.programs.items())
    yield from (f"         not {name}: {why}" for name, why in attaching.left_out.items())
    yield f"         {attaching.only_when_loaded}"
