"""What the trainer is made of; the loop itself is `runner.train`. It never imports grpc or nats.

In reading order: `attempt_file` and `config` (what is asked for), `preparation` (all that the loop needs),
`dataset`, `split`, `image`, `augmentation` and `data` (from annotations to batches), `backbone`, `neck` and
`model`, `optimizer` and `schedule`, `validation`, `checkpoint`, `session` (validate, save, stop, complete),
`commands` and `reporter` (the agent's end of the pipes), `failure` (an end with a reason).
"""
