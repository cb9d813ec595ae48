"""Decisions: from the facts in `probe` to a plan, launch flags and reports."""
