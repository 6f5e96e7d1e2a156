"""SQL scripts inside revisions. They run as they are written: a colon or a percent sign is no parameter."""

from __future__ import annotations

from alembic import op


def run(**scripts: str) -> None:
    """Run the script of the connection's dialect (``sqlite=...``, ``postgresql=...``), if there is one.

    Statements end with a semicolon at the end of a line.
    """
    connection = op.get_bind()
    for statement in scripts.get(connection.dialect.name, "").split(";\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
