"""Which images a job validates on: `choice` makes it, `label` says what it sees of annotations.

Both are pure. A trainer asks, an agent that fetches these images alone, and conversion, which lists images by their
side: that is why it lies beside the services and the runner, who import nothing of one another.
"""
