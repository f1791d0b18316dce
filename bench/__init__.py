# SPDX-License-Identifier: Apache-2.0
"""What ipitrace itself costs, beside its peers: `make bench`."""
