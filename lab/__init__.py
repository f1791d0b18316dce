# SPDX-License-Identifier: Apache-2.0
"""The lab: emulated bare-metal hosts in which ipitrace runs; see README.md."""
