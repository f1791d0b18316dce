# SPDX-License-Identifier: Apache-2.0
"""Where this machine takes Debian's packages from."""

import os

from lab.common.commands import run
from lab.common.steps import LabError


def debian_mirror() -> str:
    """The URI of the Debian mirror in the machine's apt configuration.

    apt itself is asked, so one-line and deb822 files count alike. Security and other
    overlays are no whole mirrors: their suite has a dash.

    Raises:
        LabError: there is none.
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
    raise LabError("apt's configuration names no Debian mirror: name one in IPITRACE_LAB_MIRROR")
