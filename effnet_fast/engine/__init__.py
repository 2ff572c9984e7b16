"""Engines: what runs a plan. ``cpu`` is one C++ call per native stage, ``reference`` plain
PyTorch.
"""
