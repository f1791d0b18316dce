# SPDX-License-Identifier: Apache-2.0
"""Builds the micro-guest's payload into the wheel and tags the wheel for its machine."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PayloadBuildHook(BuildHookInterface[Any]):
    """A wheel carries x86-64 machine code that runs in a guest, whatever the Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the payload unless it is fresh; an editable install takes it from the checkout."""
        if version == "editable":
            return
        directory = Path(self.root, "guest-tools", "microguest")
        try:
            subprocess.run(["make", "--no-print-directory", "-C", directory], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            message = f"building the wheel needs make, gcc and binutils: {error}"
            raise RuntimeError(message) from error
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
