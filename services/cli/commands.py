"""The tree of commands."""

from __future__ import annotations

import typer

from services.cli import checkpoint, dataset, demo, job, metric, project
from services.cli.log import show_logs
from services.cli.up import up

EXITS = "Exit codes: 0 done; 1 refused or failed; 2 not understood; 3 a service does not answer; 130 ended by Ctrl-C."

app = typer.Typer(
    name="sihlai",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Trains computer-vision models: projects, jobs, live metrics and logs.\n\n"
    "Names may be short: digits/first is projects/digits/jobs/first. Services are found by --scheduler, --metrics and "
    "--conversion, by SIHLAI_SCHEDULER_ADDRESS and so on, or by the data folder of `sihlai up`.\n\n" + EXITS,
)
app.command("up")(up)
app.add_typer(project.app, name="project")
app.add_typer(dataset.app, name="dataset")
app.add_typer(job.app, name="job")
app.command("logs")(show_logs)
app.add_typer(metric.app, name="metrics")
app.add_typer(checkpoint.app, name="checkpoint")
app.command("demo")(demo.run_demo)
