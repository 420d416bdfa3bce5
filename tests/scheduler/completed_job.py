"""A job that ran to its end on a real server, with the checkpoint that it left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def write_checkpoint(uri: str, iteration: int, epoch: int = 1, content: bytes = b"the model") -> None:
    """A whole checkpoint as an agent uploads it."""
    folder = Path(uri.removeprefix("file://")) / str(iteration)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    manifest = {
        "files": [
            {
                "name": "model.safetensors",
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        ],
        "iteration": iteration,
        "epoch": epoch,
        "cause": "VALIDATION",
        "create_time_unix_us": 1_800_000_000_000_000,
        "selection_value": 0.9,
        "best": True,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


async def completed_job(client, runner, content: bytes = b"the model", **fields):
    """A job that ran to its end and left a final model of 60 iterations."""
    job = await client.submit(**fields)
    await runner.idle()
    write_checkpoint(runner.assignment.checkpoint_uri, 60, content=content)
    final = runner.checkpoint(60, cause="CHECKPOINT_CAUSE_FINAL")
    final["files"] = [{"name": "model.safetensors", "size_bytes": len(content), "sha256": "00"}]
    await runner.close("ATTEMPT_OUTCOME_COMPLETED", checkpoints=[final], reason="JOB_REASON_LIMIT_REACHED")
    return await client.get(job.name)
