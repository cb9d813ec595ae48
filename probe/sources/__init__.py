"""Sources: each turns something (a driver, a text, a name) into a Topology."""
