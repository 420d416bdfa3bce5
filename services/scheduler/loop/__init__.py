"""What happens without a call.

`leading` (one scheduler writes), `clock` (leases run out), `adoption` (checkpoints of ended attempts), `forgetting`
(what is old), `publishing` (events from the outbox to the bus).
"""
