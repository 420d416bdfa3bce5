"""Run by Alembic: applies the migrations on the connection that `migrate` handed over, in one transaction."""

from alembic import context

from services.scheduler.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
