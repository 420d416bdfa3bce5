"""Tokens of an OpenID Connect issuer, taken beside our own.

In reading order: `settings` (the file that names the issuer, and what its claims mean here), `documents` (fetched from
the issuer), `issuer` (its keys as they were seen last), `verifier` (who a token stands for, ours or the issuer's).

No call ever waits for the issuer: its keys are fetched in the background. What a token says of itself is believed only
after its signature.
"""
