"""Alembic's entry point: it runs the revisions on the connection that `migrations.upgrade` hands over."""

from alembic import context

from qwen3vl_compat.accounts.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
