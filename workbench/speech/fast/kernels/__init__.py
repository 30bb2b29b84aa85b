"""Triton kernels for the fast paths.

They need a GPU and Triton, so modules outside of this folder import them inside of functions.
`workbench.speech.fast` says which kernel replaces which part of a model, and what each kernel needs. Triton
runs a kernel as a grid of *programs*; each program computes one block of the result.
"""
