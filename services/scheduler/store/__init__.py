"""The scheduler's rows: `database` (one writer, readers), `gathering` (when it begins), `engine` and `clock` (SQLite
and PostgreSQL), `leader` (which process may write), `transaction`, `statement` and `together` (what is said to the
database, and in one go), `tables`, `rows` (rows ↔ values), `views` (jobs as they are shown), `placing` (carries out
what the dispatcher proposes), a file a noun; then what time asks for: `upkeep` (leases and deadlines), `restart` (they
begin again), `orphans`, `forgetting` and `retention` (what is old goes), `write_ahead_log` (SQLite's stays small).

Rows stop here, and no proto comes in.
"""
