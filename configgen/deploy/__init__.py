"""Deploy: a Launch as files for a target, through templates/."""
