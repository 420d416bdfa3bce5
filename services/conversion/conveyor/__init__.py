"""Records in flight: `counts`, `chunk` (pure), `sink`, `journal`, `work` and `pool` (who does it), `conveyor`."""
