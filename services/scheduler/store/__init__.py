"""The scheduler's rows: `database` (one writer, readers), `engine` (SQLite and PostgreSQL), `leader` (which process may
write), `transaction`, `tables`, `rows` (rows ↔ values), `placing` (carries out what the dispatcher proposes), a file a
noun.

Rows stop here, and no proto comes in.
"""
