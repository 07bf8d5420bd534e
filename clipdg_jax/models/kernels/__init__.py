"""Kernels for NVIDIA GPUs, in Pallas through Triton.

They read their inputs from memory once and write their outputs once. What XLA and cuDNN make of
the same formulas moves several times as many bytes, and a CLIP's towers, with their 50 patches and
80 tokens a row, spend more time on that than on matrix products.

Sums are taken in one order, so that results repeat to the bit. Anywhere but on a GPU the kernels
are interpreted, for tests.
"""
