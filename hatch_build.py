# SPDX-License-Identifier: Apache-2.0
"""Build the guest programs into the wheel, and set the wheel's platform tag."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PayloadBuildHook(BuildHookInterface[Any]):
    """A wheel contains x86-64 machine code that runs in a guest, for any Python version."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build payload and helper if needed; an editable install uses the checkout's."""
        if version == "editable":
            return
        tools = Path(self.root, "guest-tools")
        make = ["make", "--no-print-directory", "-C"]
        try:
            subprocess.run([*make, tools / "microguest"], check=True)
            subprocess.run([*make, tools / "ipistorm", "ipistorm"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            message = f"building the wheel needs make, gcc, binutils and a static libc: {error}"
            raise RuntimeError(message) from error
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
