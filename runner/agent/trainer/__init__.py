"""The running trainer: `supervision` of its `process`, and its `ending`."""
