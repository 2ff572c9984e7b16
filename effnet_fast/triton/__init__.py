"""The operators' Triton kernels, one file for each, under the operators' stems."""
