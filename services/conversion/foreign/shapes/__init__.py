"""What annotation tools draw, whatever file they keep it in: `shape`, `tally` (what a dataset has of them), `reading`
(shapes to a task's annotation), `writing` (the way back), `intake` (a dataset of shaped images)."""
