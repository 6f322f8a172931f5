"""Where job records are kept: one table, opened by the server process alone."""

from __future__ import annotations

import logging
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from sqlalchemy import Column, Float, MetaData, String, Table, Text, create_engine, delete, event, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from segserve.errors import SegserveError
from segserve.jobs.journal import Journal, journal_mode
from segserve.jobs.record import Job

log = logging.getLogger(__name__)

BUSY_MILLISECONDS = 5000
METADATA = MetaData()
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("created", Float, nullable=False),
    Column("record", Text, nullable=False),
)


class JobStore(Protocol):
    """Keeps job records. Calls block; the runner makes them in a thread."""

    def load(self) -> list[Job]:
        """Every record, oldest first."""
        ...

    def save(self, job: Job) -> None:
        """Keep a record, in place of the one of the same id; it is on disk when this returns."""
        ...

    def check(self) -> None:
        """Fail as `save` would if it were called now, without keeping anything."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...


class SqlJobStore:
    """Records in an SQLite file."""

    def __init__(self, path: Path) -> None:
        try:
            self._engine = _open(path)
        except OperationalError as error:  # locked, or no room: nothing is wrong with the file
            raise SegserveError(f"The job records {path} cannot be opened: {error.orig}.") from None
        except (DatabaseError, sqlite3.DatabaseError):
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            path.replace(aside)
            log.warning("the job records were damaged; they are now %s, and the list of jobs starts anew", aside)
            self._engine = _open(path)

    def load(self) -> list[Job]:
        """See `JobStore`. A record that a newer server wrote, and that makes no sense here, is left alone."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(JOBS.c.id, JOBS.c.record).order_by(JOBS.c.created)).all()
        jobs = []
        for identity, record in rows:
            try:
                jobs.append(Job.model_validate_json(record))
            except ValidationError:
                log.warning("the record of job %s cannot be read", identity)
        return jobs

    def save(self, job: Job) -> None:
        """See `JobStore`."""
        row = {"id": job.id, "state": job.state, "created": job.created, "record": job.model_dump_json()}
        with self._engine.begin() as connection:
            connection.execute(delete(JOBS).where(JOBS.c.id == job.id))
            connection.execute(insert(JOBS).values(row))

    def check(self) -> None:
        """See `JobStore`."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.rollback()

    def close(self) -> None:
        """See `JobStore`."""
        self._engine.dispose()


def _open(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", partial(_prepare, journal_mode(path)))
    try:
        METADATA.create_all(engine)
        _check_whole(engine)
    except (DatabaseError, sqlite3.DatabaseError):
        engine.dispose()
        raise
    return engine


def _check_whole(engine: Engine) -> None:
    """Look at every page, since most are read only later.

    Raises:
        sqlalchemy.exc.DatabaseError, sqlite3.DatabaseError: some are damaged.
    """
    with engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _prepare(journal: Journal, connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    """A record that was saved survives a power cut; one whose text is damaged does not keep the others from being read.

    The text then has marks for what is no text, and `load` tells whether it makes sense.
    """
    connection.text_factory = _text
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_MILLISECONDS}", f"journal_mode={journal}", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
