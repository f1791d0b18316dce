# SPDX-License-Identifier: Apache-2.0
"""The program by which ipitrace starts itself; see programs.own_command().

Arguments: sys.path as JSON, then those of the command line. The interpreter is isolated, so
the list is all that says where packages are.
"""

import json
import sys

if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv.pop(1))

    from ipitrace.cli import main

    main()
