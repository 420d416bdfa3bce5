"""The calls: from the wire, one call to what does it, to the wire. No rule is decided here, and no SQL stands here."""
