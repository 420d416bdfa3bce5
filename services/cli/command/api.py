"""`sihlai api`: any method of the services, by its name in the .proto files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from google.protobuf.message_factory import GetMessageClass
from sihlai.auth.v1 import token_service_pb2
from sihlai.conversion.v1 import conversion_service_pb2
from sihlai.installation.v1 import installation_service_pb2
from sihlai.logs.v1 import log_service_pb2
from sihlai.metrics.v1 import metrics_service_pb2
from sihlai.runner.v1 import runner_admin_service_pb2
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2,
    conversion_report_service_pb2,
    job_service_pb2,
    project_service_pb2,
)

from services.cli.session import Session, command
from services.cli.specification import assign
from services.cli.view.output import Format, Output
from services.client.call import Method, ask, read
from services.client.specification import SpecificationError

FILES = (
    project_service_pb2,
    job_service_pb2,
    checkpoint_service_pb2,
    conversion_report_service_pb2,
    runner_admin_service_pb2,
    token_service_pb2,
    metrics_service_pb2,
    log_service_pb2,
    conversion_service_pb2,
    installation_service_pb2,
)


@command
async def call_api(
    session: Session,
    method: Annotated[
        str, typer.Argument(metavar="[SERVICE.METHOD]", help="Such as JobService.GetJob; without one, all are listed.")
    ] = "",
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="Of the request, such as name=projects/a.")
    ] = None,
) -> None:
    """Call any method of the services and write its answers as data, a line each.

    Examples: sihlai api; sihlai api ProjectService.ListProjects page_size=5;
    sihlai api JobService.GetJob name=projects/digits/jobs/first -o yaml
    """
    methods = dict(_methods())
    if not method:
        for name in methods:
            session.output.line(name)
        return
    if method not in methods:
        close = difflib.get_close_matches(method, methods, n=1, cutoff=0.4)
        raise SpecificationError(
            f"there is no method {method}" + (f": did you mean {close[0]}?" if close else ": `sihlai api` lists them")
        )
    found = methods[method]
    request = GetMessageClass(found.input_type)()
    for field in fields or ():
        assign(request, field)
    called: Any = Method(
        path=f"/{found.containing_service.full_name}/{found.name}",
        serialize=lambda message: message.SerializeToString(),
        deserialize=GetMessageClass(found.output_type).FromString,
    )
    output = session.output if session.output.as_json else Output(format=Format.JSON)
    if found.server_streaming:
        async for answer in session.client.iterate(read, called, request):
            output.json(answer)
    else:
        output.json(await session.client.run(ask, called, request))


def _methods() -> Iterator[tuple[str, Any]]:
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not method.client_streaming:
                    yield f"{service.name}.{method.name}", method
