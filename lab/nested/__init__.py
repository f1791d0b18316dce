# SPDX-License-Identifier: Apache-2.0
"""The whole chain: in the emulated AMD host, a Debian guest under kvm_amd, driven over ssh."""
