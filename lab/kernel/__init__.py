# SPDX-License-Identifier: Apache-2.0
"""The lab's own kernel: Debian's source, a small configuration, the Passthrough IPI series."""
