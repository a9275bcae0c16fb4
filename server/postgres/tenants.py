"""A role and a schema for each project, in a database of their own.

    proj_<uuid hex>   LOGIN role, nothing inherited, at most 20 connections (none while it is held, see
                      `server.postgres.holds`); owns what it creates in its schema
    proj_<uuid hex>   schema, owned by the admin's role: a schema's owner could drop it, or let others in

A role may change its own password and settings, nobody can forbid it. So limits are sent as settings of each session,
which beat the role's, and a password that no longer works is set again (`repair`). Passwords are derived from a secret
of the server and stored nowhere; over a unix socket with peer authentication they are not even used.
"""

import getpass
import hashlib
import hmac
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote, urlencode
from uuid import UUID

from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import UndefinedObject

from server.log import Logger
from server.postgres import effects, holds, publication
from server.postgres.channel import Address, Login
from server.postgres.effects import Effects
from server.postgres.hardening import LOCK_KEY, Hardening, harden
from server.postgres.seal import Sealer

log = Logger("tenants")

OTHER_DATABASES: Final = ("altbase", "postgres", "template1")
"""Closed to PUBLIC beside the tenants database; other databases of the server are reported, not touched."""

ROLE_SETTINGS: Final = {
    "temp_file_limit": "1GB",
    "log_min_messages": "panic",  # RAISE in a loop must not fill our disk, and errors quote the tenant's data
    "log_min_error_statement": "panic",
}
"""Settings that only a superuser may give and the role cannot take back."""

HIDING: Final = (
    "ALTER DEFAULT PRIVILEGES FOR ROLE {name} REVOKE ALL ON ROUTINES FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {name} REVOKE ALL ON TYPES FROM PUBLIC",
)
"""Else information_schema shows the names of a tenant's functions and types to all others."""

_KEEPALIVE: Final = {
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
"""A remote server that is gone is missed within seconds, in whatever state the connection is."""

_SERVER_KEEPALIVE: Final = "-c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=3"
"""So that Postgres, too, forgets a worker whose machine is gone, and lets go of its locks."""

_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")


def schema_of(project_id: str) -> str:
    """The name of a project's schema and of its role. ValueError unless `project_id` is a UUID in lower case."""
    if not _UUID.fullmatch(project_id):
        raise ValueError(f"not a project id: {project_id[:40]!r}")
    return "proj_" + project_id.replace("-", "")


def project_of(schema: str) -> str | None:
    """The id of the project whose schema it is, as 36 characters; None for any other schema."""
    return str(UUID(schema[5:])) if re.fullmatch(publication.SCHEMA_PATTERN, schema) else None


class Tenants:
    """`admin_url`: a superuser's URL of the tenants database (an owner with CREATEROLE works, less is closed then).

    `secret`: at least 32 bytes that all processes of an installation share.
    """

    def __init__(self, admin_url: str, *, secret: bytes, other_databases: tuple[str, ...] = OTHER_DATABASES) -> None:
        if len(secret) < 32:
            raise ValueError("the secret must have at least 32 bytes")
        self._admin_url = admin_url
        self._secret = secret
        self.sealer = Sealer(secret)
        self._other_databases = other_databases
        given = {name: str(value) for name, value in conninfo_to_dict(admin_url).items() if value is not None}
        self._given = given
        options = f"{given.get('options', '')} {_SERVER_KEEPALIVE}".strip()
        self._conninfo = make_conninfo(admin_url, **{**_KEEPALIVE, **given, "options": options})
        self.database = given.get("dbname", "tenants")
        host = given.get("hostaddr") or given.get("host") or "127.0.0.1"
        self.address = _address(host.split(",")[0], given)

    async def start(self) -> Hardening:
        """Harden the database and publish it for change data capture. Safe by many processes at a time; changes
        nothing when all is as it must be."""
        async with self.admin() as admin:
            found = await harden(admin, self._other_databases)
            async with admin.transaction():
                await admin.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
                await effects.prepare(admin, self.sealer)
        try:
            await self.publish()
        except publication.NotPublishable as why:
            log.warning("tenants.unpublished", f"There are no events of tables: {why}")
        if found.readable_relations or found.callable_functions or found.open_databases:
            log.warning(
                "tenants.gaps",
                "Not everything could be closed to tenants: give a superuser's ATLAS_TENANT_DATABASE_URL, "
                "or close it by hand",
                readable_relations=found.readable_relations,
                callable_functions=found.callable_functions,
                open_databases=found.open_databases,
            )
        return found

    async def publish(self) -> None:
        """Every project's schema is published, those that were there before us included; what a transaction of a
        tenant holds up is left for the next call. `publication.NotPublishable`."""
        async with self.admin() as admin:
            await publication.require(admin)
            async with admin.transaction():
                await admin.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
                await publication.prepare(admin)
            for schema in await publication.unpublished(admin):
                async with admin.transaction():
                    await admin.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
                    await publication.publish(admin, schema)

    async def provision(self, project_id: str) -> None:
        """Role, schema, privileges and password as they must be, whatever was there before. Idempotent. One that is
        held remains so."""
        name = sql.Identifier(schema_of(project_id))
        async with self.admin() as admin, admin.transaction():
            await admin.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
            there = await admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [schema_of(project_id)])
            verb = "ALTER" if there.rowcount else "CREATE"
            superuser = admin.info.parameter_status("is_superuser") == "on"
            held = await holds.is_held(admin, schema_of(project_id))
            await admin.execute(
                sql.SQL(
                    "{verb} ROLE {name} LOGIN {superuser} NOINHERIT NOCREATEDB NOCREATEROLE {replication}"
                    " CONNECTION LIMIT {limit} PASSWORD {verifier}"
                ).format(
                    verb=sql.SQL(verb),
                    name=name,
                    superuser=sql.SQL("NOSUPERUSER" if superuser else ""),
                    replication=sql.SQL("NOREPLICATION NOBYPASSRLS" if superuser else ""),
                    limit=sql.Literal(0 if held else holds.CONNECTION_LIMIT),
                    verifier=sql.Literal(self._verifier(admin, project_id)),
                )
            )
            if superuser:
                for setting, value in ROLE_SETTINGS.items():
                    await admin.execute(
                        sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value))
                    )
            for grant in (
                "GRANT CONNECT ON DATABASE {database} TO {name}",
                "CREATE SCHEMA IF NOT EXISTS {name}",
                "REVOKE ALL ON SCHEMA {name} FROM PUBLIC",
                "GRANT USAGE, CREATE ON SCHEMA {name} TO {name}",
                # what an administrator creates there for a project is the project's to use
                "ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT ALL ON TABLES TO {name}",
                "ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT ALL ON SEQUENCES TO {name}",
                "ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT ALL ON ROUTINES TO {name}",
                "ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT ALL ON TYPES TO {name}",
                *(HIDING if superuser else ()),
            ):
                await admin.execute(sql.SQL(grant).format(name=name, database=sql.Identifier(self.database)))
            try:
                await publication.require(admin)
            except publication.NotPublishable:
                return
            await publication.prepare(admin)
            await publication.publish(admin, schema_of(project_id))

    async def repair(self, project_id: str) -> None:
        """After a refused login: the role's password and rights again. Does nothing for a project that was dropped."""
        async with self.admin() as admin:
            there = await admin.execute("SELECT FROM pg_namespace WHERE nspname = %s", [schema_of(project_id)])
        if there.rowcount:
            await self.provision(project_id)

    async def is_held(self, project_id: str) -> bool:
        """Whether it is kept out of its database until its changes are published. psycopg.Error."""
        async with self.admin() as admin:
            return await holds.is_held(admin, schema_of(project_id))

    async def drop(self, project_id: str) -> None:
        """End the project's sessions and delete its schema, everything it owns, and its role. Idempotent."""
        name = sql.Identifier(schema_of(project_id))
        async with self.admin() as admin:
            try:
                await admin.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(name))
            except UndefinedObject:
                await admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
                return
            await admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s",
                [schema_of(project_id)],
            )
            async with admin.transaction():
                await admin.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
                await admin.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))
                await admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
                await admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(name))
                await admin.execute(sql.SQL("DROP ROLE {}").format(name))
                await holds.forget(admin, schema_of(project_id))
                await effects.forget(admin, schema_of(project_id))

    async def ping(self) -> None:
        """psycopg.Error unless the database answers."""
        async with self.admin() as admin:
            await admin.execute("SELECT 1")

    def login(self, project_id: str, settings: dict[str, str]) -> Login:
        """For `Session.connect`: the project's role, with `settings` for the session."""
        role = schema_of(project_id)
        return Login(role=role, database=self.database, password=self._password(project_id), settings=settings)

    def effects(self, project_id: str) -> Effects:
        """What runs of the project leave beside its rows."""
        return Effects(self.sealer, schema_of(project_id))

    def replication_login(self, settings: dict[str, str]) -> Login:
        """For `Session.connect`: the admin's own role, for streaming replication from the tenants database."""
        role = self._given.get("user") or getpass.getuser()
        password = self._given.get("password", "")
        return Login(
            role=role, database=self.database, password=password, settings={"replication": "database", **settings}
        )

    def psql_url(self, project_id: str) -> str:
        """For people, the project's own role. Tables need no prefix: search_path begins with "$user"."""
        role, password = schema_of(project_id), self._password(project_id)
        kept = {name: value for name, value in self._given.items() if name in ("sslmode", "sslrootcert")}
        if self.address.host.startswith("/"):
            query = urlencode(
                {"host": self.address.host, "port": str(self.address.port), **kept}, quote_via=quote, safe=""
            )
            return f"postgresql://{role}:{password}@/{quote(self.database)}?{query}"
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        query = f"?{urlencode(kept, quote_via=quote, safe='')}" if kept else ""
        return f"postgresql://{role}:{password}@{host}:{self.address.port}/{quote(self.database)}{query}"

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the admin's role, closed at the end. psycopg.Error."""
        # roles change rarely: a connection for each change, none kept
        connection = await AsyncConnection.connect(
            self._conninfo, autocommit=True, connect_timeout=5, application_name="atlas-tenants"
        )
        async with connection:
            yield connection

    def _password(self, project_id: str) -> str:
        return hmac.new(self._secret, b"tenant role " + schema_of(project_id).encode(), hashlib.sha256).hexdigest()

    def _verifier(self, admin: AsyncConnection, project_id: str) -> str:
        """What Postgres stores; so the password itself is in no statement and no log."""
        secret, role = self._password(project_id).encode(), schema_of(project_id).encode()
        return admin.pgconn.encrypt_password(secret, role, b"scram-sha-256").decode()


def _address(host: str, given: dict[str, str]) -> Address:
    port = int(given.get("port", "5432").split(",")[0])
    mode = given.get("sslmode", "prefer")
    if host.startswith("/") or mode == "disable":
        return Address(host=host, port=port)
    context = ssl.create_default_context(cafile=given.get("sslrootcert") if mode.startswith("verify") else None)
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("verify") else ssl.CERT_NONE
    return Address(host=host, port=port, tls=context, tls_required=mode not in ("allow", "prefer"))
