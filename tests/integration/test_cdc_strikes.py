"""What cannot be decoded is skipped after some strikes, and only by who reads the slot."""

from itertools import pairwise

from psycopg import AsyncConnection

from server.cdc import slot
from server.cdc.changes import Changes, TooManyTables
from server.cdc.pgoutput import Begin, ProtocolError
from server.cdc.position import lsn_text
from server.cdc.relay import Relay
from server.cdc.strikes import STRIKES, Strikes
from server.postgres.channel import SqlError
from server.postgres.tenants import Tenants
from tests.fix_cdc import forget_slots, run


async def test_what_fails_before_its_transaction_is_known_is_passed_in_growing_steps(
    tenants: Tenants, person: AsyncConnection, project: str
) -> None:
    await run(person, "SET synchronous_commit = on", "CREATE TABLE t (v text)")
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        await run(person, "INSERT INTO t SELECT md5(i::text) FROM generate_series(1, 10000) AS i")
        strikes = Strikes()
        unread = Changes(name, None, most_bytes=1_000_000)
        for _ in range(STRIKES - 1):
            strikes.count(ProtocolError("x"), name, unread)
            await strikes.skip(admin)
        began, end = await slot.confirmed(admin, name)
        assert await slot.noted_gap(admin) is None
        places = [began]
        for _ in range(3):
            strikes.count(SqlError({"C": "XX000"}), name, unread)
            await strikes.skip(admin)
            places.append((await slot.confirmed(admin, name))[0])
        assert [after - before for before, after in pairwise(places)] == [2**16, 2**17, 2**18]
        assert places[-1] < end
        gap = await slot.noted_gap(admin)
        assert gap
        assert (gap.project_id, gap.reason) == (None, "undecodable (XX000)")
        assert (gap.since, gap.until) == (lsn_text(places[0]), lsn_text(places[-1])), "one gap while it is not told"
        strikes.count(SqlError({"C": "57P01"}), name, unread)
        elsewhere = Changes(name, None, most_bytes=1_000_000)
        elsewhere.take(Begin(1, 0, 1), {})
        strikes.count(ProtocolError("x"), name, elsewhere)
        await strikes.skip(admin)
        assert (await slot.confirmed(admin, name))[0] == places[-1], "another place counts anew"
    await forget_slots(tenants)


async def test_nothing_is_skipped_while_another_reads_and_no_gap_is_told(relay: Relay, tenants: Tenants) -> None:
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        strikes = Strikes()
        within = Changes(name, None, most_bytes=1_000_000)
        within.take(Begin((await slot.confirmed(admin, name))[1] + 10**6, 0, 1), {})
        for _ in range(STRIKES):
            strikes.count(TooManyTables("x"), name, within)
            await strikes.skip(admin)
        assert await slot.noted_gap(admin) is None


async def test_what_another_went_past_counts_anew(tenants: Tenants, person: AsyncConnection) -> None:
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        strikes, unread = Strikes(), Changes(name, None, most_bytes=1_000_000)
        for _ in range(STRIKES - 1):
            strikes.count(ProtocolError("x"), name, unread)
            await strikes.skip(admin)
        await run(person, "SET synchronous_commit = on", "CREATE TABLE t (v text)", "INSERT INTO t VALUES ('x')")
        moved = (await slot.confirmed(admin, name))[1]
        assert await slot.skip(admin, name, moved)
        strikes.count(ProtocolError("x"), name, unread)
        await strikes.skip(admin)
        assert await slot.noted_gap(admin) is None
    await forget_slots(tenants)
