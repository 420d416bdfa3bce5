"""What each process needs and no process owns: configuration, log, errors, rpc, authentication, bus, objects,
files, loops, backoff; and where an installation is, as who runs it writes down and who calls it looks up.

The chassis holds no domain word but the services' names, and imports no service and no runner. `errors` imports the
standard library alone, because domain modules import it; every other module here may be imported by what runs a
process, never by a domain.
"""
