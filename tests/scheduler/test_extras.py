"""A job that needs an optional part of sihlai goes to a runner that has it, and waits for one that says so."""

from __future__ import annotations

import asyncio

from sihlai.runner.v1 import runner_admin_service_pb2

TIMM = {
    "model": {"backbone": {"name": "timm/resnet10t"}, "heads": [{"task": "TASK_MULTICLASS_CLASSIFICATION"}]},
    "data": {"height": 64, "width": 64},
}


def test_job_on_a_backbone_of_timm_waits_for_a_runner_that_has_it(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            without, having = simulated_runner(client, "without"), simulated_runner(client, "having")
            having.capabilities = {**having.capabilities, "extras": ["timm"]}
            job = await client.submit(spec=TIMM)
            assert not (await without.idle(wait=0.0)).HasField("run")
            why = (await client.get(job.name)).why_not_running
            wanted = "no registered runner can serve it: runners/without lacks timm (install sihlai[timm] there)"
            assert why == wanted
            assert (await having.idle(wait=0.0)).run.assignment.job == job.name

    asyncio.run(test())


def test_what_a_runner_has_is_shown(serve, simulated_runner):
    async def test():
        async with serve() as client:
            having = simulated_runner(client, "having")
            having.capabilities = {**having.capabilities, "extras": ["timm", "\x00"]}
            await having.idle(wait=0.0)
            request = runner_admin_service_pb2.GetRunnerRequest(name="runners/having")
            shown = (await client.runner_admin.GetRunner(request)).runner
            assert "timm" in shown.capabilities.extras

    asyncio.run(test())
