"""Where results lie: `pinned` (folders by descriptors), `draft` (not whole yet), `store`, `uploading`, `destination`.

The store is the system's own, a destination a caller's.
"""
