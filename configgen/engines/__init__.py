"""Engines: each turns a Plan into a Launch in its own flags, under its own laws."""
