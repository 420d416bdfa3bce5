"""What the trainer is made of; the loop itself is `runner.train`. It never imports grpc or nats.

In reading order: `attempt_file` and `config` (what is asked for), `preparation` (all that the loop needs), `dataset`
and `split` (which images, with which targets), `view`, `image` and `store` (how they come to lie on the canvas),
`augmentation`, `order`, `targets`, `batch`, `collation` and `loader` (from images to batches), `backbone`, `neck` and
`model`, `rehearsal`, `optimizer` and `schedule`, `validation` with `samples`, `checkpoint`, `session` (validate, save,
stop, end), `commands` and `reporter` (the agent's end of the pipes), `machine`, `failure` (an end with a reason).
"""
