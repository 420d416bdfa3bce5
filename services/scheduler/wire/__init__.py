"""Protos ↔ values, in pairs, and what is checked on the way in. Protos stop here and in `servicer`."""
