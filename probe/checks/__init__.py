"""What the audit looks for, a module per kind of fact: each check is a pure function, Survey -> Findings."""
