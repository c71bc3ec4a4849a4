"""Triton kernels of per-pixel layers and of whole networks. Nothing in this folder imports the rest of cips_fast."""
