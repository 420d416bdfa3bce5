"""What each process needs and no process owns: configuration, log, errors, rpc, authentication, bus, objects,
files, loops, backoff.

The chassis holds no domain word and imports no service and no runner. `errors` imports the standard library alone,
because domain modules import it; every other module here may be imported by what runs a process, never by a domain.
"""
