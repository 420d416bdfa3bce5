"""The scheduler's rows: `database` (engines, one writer, readers), `tables`, `rows` (rows ↔ values), a file a noun.

Rows stop here, and no proto comes in.
"""
