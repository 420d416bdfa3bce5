"""Objects of a folder or a bucket: `uri` (what an address may be), `access` (limits, keys), `bucket`, `local`, `parts`,
`store`."""
