"""Rows out as they come: `source` (what lines and points differ in: `tail`, `watch`), `following` (history, live, end),
`hub`, `topic` and `feed` (who follows what, and what all who want the same share), `room` (in how many bytes), `shared`
(reads that many want at once), `ending` (when nothing more will come).
"""
