"""Who calls, what they may do, and how that is shown with each call.

In reading order: `principal` (a user, a runner or a service, and its roles), `write_token` (what one attempt may
write), `succession` (how a key hands over to the next), `keys` (signing and verifying, Ed25519 with key ids), `oidc/`
(tokens of an issuer that the configuration names), `access` (the one table: which call needs what), `guard` (the
server's side: each call is looked at, a stream for as long as it lasts), `revocation` (tokens that hold no more),
`carrying` (the client's side: a token with each call).

A token is verified with public keys alone, in each service by itself. Tokens and private keys must never be logged nor
stand in an error.
"""
