"""Plumbing of the AutoIF reproduction: files, completions, sandbox, training. The method is in the numbered files."""
