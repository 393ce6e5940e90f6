"""Triton kernels of a sampling step over tensors, which know nothing of models; imported only where Triton is."""
