"""What both training stages stand on: rows as tokens, packs, DeepSpeed, resume points, the log."""
