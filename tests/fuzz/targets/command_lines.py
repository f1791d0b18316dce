# SPDX-License-Identifier: Apache-2.0
"""A VMM's program and command line, parts between \\0; and what it names for its guest agent."""

from ipitrace.vm.agent import agent_channel
from ipitrace.vm.names import scope_name
from ipitrace.vm.vmm import parse_command_line


def fuzz(data: bytes) -> None:
    program, *arguments = data.decode(errors="replace").split("\0")
    line = parse_command_line(program, arguments)
    assert line.memory_bytes is None or line.memory_bytes >= 0
    channel = agent_channel(arguments)
    assert channel is None or channel.path != ""
    scope_name(program)
