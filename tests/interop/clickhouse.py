"""ClickHouse's engine, the module chdb, with an ensemble of Conclave as its Keeper.

    clickhouse.py DIR SERVERS     SERVERS as host:port,...

Writes "! ORDER" for what is to be done with the ensemble, waits for a line each time, and ends with
"all is well". The engine is no server: a replicated table needs one, and is not tried here.
"""

import sys
import time

from chdb import session

DIR, SERVERS = sys.argv[1], sys.argv[2].split(",")
# How long anything may take, in s.
DEADLINE = 60


def configure():
    nodes = ""
    for server in SERVERS:
        host, port = server.split(":")
        nodes += f"<node><host>{host}</host><port>{port}</port></node>"
    path = f"{DIR}/config.xml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"""<clickhouse>
              <zookeeper>{nodes}<session_timeout_ms>6000</session_timeout_ms></zookeeper>
              <keeper_map_path_prefix>/keeper_map</keeper_map_path_prefix>
              <allow_experimental_transactions>1</allow_experimental_transactions>
              <transaction_log><zookeeper_path>/transactions</zookeeper_path></transaction_log>
              <named_collections_storage>
                <type>keeper</type><path>/named_collections</path>
              </named_collections_storage>
              <user_defined_zookeeper_path>/functions</user_defined_zookeeper_path>
              <logger><level>warning</level><log>{DIR}/log</log></logger>
            </clickhouse>"""
        )
    return path


ENGINE = session.Session(f"{DIR}/data?config-file={configure()}")


def ask(statement):
    return str(ENGINE.query(statement, "TSV")).strip()


def says(statement, expected=""):
    """Is answered so, at once."""
    answer = ask(statement)
    assert answer == expected, f"{statement}: {answer!r}, not {expected!r}"


def insists(statement, expected=""):
    """Is answered so, once there is a leader again."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return says(statement, expected)
        except (AssertionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{statement}: in vain") from error
            time.sleep(0.1)


def fails(statement, reason):
    """Fails for this reason."""
    try:
        answer = ask(statement)
    except RuntimeError as error:
        assert reason in str(error), f"{statement}: {error}, not {reason}"
    else:
        raise AssertionError(f"{statement}: {answer!r}, no failure")


def order(what):
    print(f"! {what}")
    sys.stdin.readline()


def engine_features():
    """What it keeps there for itself."""
    for number in range(3):
        says("select generateSerialID('serial')", str(number))

    says("create named collection settings as a = 1")
    says("select name from system.named_collections", "settings")
    says("create function plus_one as (x) -> x + 1")
    says("select plus_one(2)", "3")

    says("create table events (k UInt64) engine = MergeTree order by k")
    for end, rows in (("commit", 10), ("rollback", 10)):
        says("begin transaction")
        says("insert into events select number from numbers(10)")
        says("select count() from events", "10" if end == "commit" else "20")
        says(end)
        says("select count() from events", str(rows))


def keeper_map():
    says("create table pairs (k UInt64, v String) engine = KeeperMap('/pairs') primary key k")
    says("insert into pairs select number, toString(number) from numbers(100)")
    # Keys that are there and keys that are not, in one request.
    says("select k, v from pairs where k in (3, 5, 500) order by k", "3\t3\n5\t5")
    says("select count(), sum(k) from pairs", "100\t4950")
    # It knows how long a request may be, and keeps its session.
    too_much = "insert into pairs select number + 1000, repeat('x', 200000) from numbers(10)"
    fails(too_much, "exceeds limit 1048575")
    says("select count() from pairs", "100")
    says("set keeper_map_strict_mode = 1")
    says("alter table pairs update v = 'x' where k = 3")
    says("alter table pairs delete where k = 4")
    says("select v from pairs where k in (3, 4)", "x")


engine_features()
keeper_map()
for kill in (1, 2):
    order("kill the leader")
    insists("set keeper_map_strict_mode = 0")
    insists(f"insert into pairs select number + {kill}00, 'new' from numbers(100)")
    insists("select count() from pairs", str(99 + 100 * kill))
    insists("select v from pairs where k = 3", "x")
    order("start the killed server")
insists("select generateSerialID('other')", "0")
insists("truncate table pairs")
insists("drop table if exists pairs sync")
insists("drop function if exists plus_one")
insists("drop named collection if exists settings")
print("all is well")
