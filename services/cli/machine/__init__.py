"""The processes of one machine: `supervisor` starts, watches and stops what `definitions` lists; `child` is one of
them, `folder` where their files lie, `address` and `gpus` what they share; `conversion` and `predictor` are processes
that a command starts for itself.
"""
