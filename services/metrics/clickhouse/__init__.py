"""ClickHouse: `engine` (embedded, or a `server`) and its `connection`; the `disk` under an embedded one, and what a
full one leaves (`repair`, `upkeep`); `ownership` (who stores what); `lane` (who reads with what); `migration` and
migrations/; `deletion`; `store` (inserts, writers), `catalog`, `series` and `lines` (queries). SQL stands here and
nowhere else.
"""
