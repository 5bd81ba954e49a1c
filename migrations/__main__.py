"""`python -m migrations` brings the database to the newest schema; safe to run from several places at once.

Also: `python -m migrations check` fails when tables and migrations differ, `revision "what changed"` writes a draft,
`downgrade REVISION` goes back.
"""

from __future__ import annotations

import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config

from app import local_files
from app.db import session
from app.settings import Settings, current
from app.storage import Storage

DATABASE_WAIT_S = 60.0


def configuration(settings: Settings) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(year)d-%%(month).2d-%%(day).2d_%%(slug)s")
    config.attributes["settings"] = settings
    return config


def upgrade(settings: Settings, revision: str = "head") -> None:
    Storage(settings.data_dir).create()  # for a database in the folder; without the object store: no file is touched
    engine = session.connect(settings, "command")
    try:
        session.wait_until_reachable(engine, DATABASE_WAIT_S)
    finally:
        engine.dispose()
    command.upgrade(configuration(settings), revision)


def main(arguments: list[str]) -> None:
    local_files.keep_private()
    config = configuration(current())
    match arguments:
        case []:
            upgrade(current())
        case ["check"]:
            command.check(config)
        case ["revision", what]:
            command.revision(
                config, what, autogenerate=True, rev_id=f"{datetime.now(UTC):%Y%m%d}{uuid.uuid4().hex[:4]}"
            )
        case ["downgrade", revision]:
            command.downgrade(config, revision)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
