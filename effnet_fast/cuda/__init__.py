"""The host side of csrc/cuda, one file for each operator, under the operators' stems."""
