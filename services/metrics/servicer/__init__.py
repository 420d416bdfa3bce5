"""One file a service: from wire, one call, to wire. `request` and `page_token` serve all."""
