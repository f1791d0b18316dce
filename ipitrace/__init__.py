# SPDX-License-Identifier: Apache-2.0
"""ipitrace: what an inter-processor interrupt costs on a real KVM host."""

import os

# NumPy's BLAS would start a thread for each CPU, though nothing here multiplies matrices, and
# Arrow's allocator one that tidies up. They would keep the privileges that a command gives up
# (see host/privileges.py).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

__version__ = "0.1.0"
