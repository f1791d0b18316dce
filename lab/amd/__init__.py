# SPDX-License-Identifier: Apache-2.0
"""The AMD host: QEMU with nested SVM."""
