# SPDX-License-Identifier: Apache-2.0
"""Passthrough IPI on the emulated Intel host: off compared with on, and its risk."""
