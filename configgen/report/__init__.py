"""Reports: Plans and Topologies as text for people."""
