"""What the scheduler reads and writes in the object store: `checkpoints`, `conversion_reports`."""
