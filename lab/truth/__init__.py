# SPDX-License-Identifier: Apache-2.0
"""The true times of an IPI's stages, from the emulator, without a probe in the host."""
