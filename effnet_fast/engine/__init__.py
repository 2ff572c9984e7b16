"""Engines: what runs a plan. ``cpu`` is C++ programs, ``reference`` plain PyTorch."""
