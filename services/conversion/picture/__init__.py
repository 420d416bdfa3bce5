"""Pictures of datasets: annotations drawn on their images, and contact sheets of them.

In reading order: `color` and `text`; `canvas` (an image that takes shapes), `legend`, `objects` and `maps` (a function
each task), `drawing` (the table of them), `sheet`. Pure: decoded images and annotations in, a picture out; the same in
gives the same out.
"""
