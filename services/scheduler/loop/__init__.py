"""What happens without a call.

`leading` (one scheduler writes), `clock` (leases run out), `adoption` (checkpoints of ended attempts), `forgetting`
(what is old), `stragglers` (files that came after their job was deleted), `publishing` (events from the outbox to the
bus).
"""
