# SPDX-License-Identifier: Apache-2.0
"""The Debian mirror of this machine."""

import os

from lab.common.commands import run
from lab.common.steps import LabError


def debian_mirror() -> str:
    """The URI of the Debian mirror in the machine's apt configuration.

    apt reports it, for one-line and deb822 files alike. Security and other overlays are not
    complete mirrors: their suite has a dash.

    Raises:
        LabError: apt has no Debian mirror.
    """
    own = os.environ.get("IPITRACE_LAB_MIRROR")
    if own:
        return own
    form = "$(ORIGIN) $(RELEASE) $(COMPONENT) $(SITE)"
    try:
        targets = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    except FileNotFoundError:
        targets = ""
    for line in targets.splitlines():
        origin, suite, component, site = line.split(" ", 3)
        if origin == "Debian" and component == "main" and "-" not in suite:
            return site
    raise LabError("apt's configuration has no Debian mirror: set IPITRACE_LAB_MIRROR to one")
