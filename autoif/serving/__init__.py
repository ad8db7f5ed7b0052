"""A server for a checkpoint, and the check that everything a run needs is there."""
