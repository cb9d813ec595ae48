"""Measures the wires: what to measure, the processes that do it, and what runs inside a rank."""
