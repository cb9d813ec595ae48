"""Run: what starts a plan on a node and stays with it."""
