# SPDX-License-Identifier: Apache-2.0
"""ipitrace: what an inter-processor interrupt costs on a real KVM host."""

import os

# Nothing here multiplies matrices; NumPy's BLAS would start a thread for each CPU all the same,
# and those would keep the privileges that a command gives up (see host/privileges.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
