"""From and to the wire: `dataset` (what the calls share), `exchange`, `preview`. Protos stop here."""
