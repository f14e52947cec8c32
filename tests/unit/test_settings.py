import certifi
import msgspec.inspect
import pytest
from msgspec.structs import asdict, replace

from api.schemas import Timeout
from timemachine.domain.errors import SettingsError
from timemachine.postgres.dsn import Dsn, read_dsn
from timemachine.postgres.pool import open_pool
from timemachine.settings import BESIDE_THE_REQUEST, LONGEST_TIMEOUT, SECRET, Settings, is_loopback

PASSWORD = "hunter2"
SECRETS = {
    "egress_proxy": f"http://us:{PASSWORD}@proxy:3128",
    "postgres_dsn": f"postgresql://us:{PASSWORD}@db/x",
    "secret_keys": f"{PASSWORD},{PASSWORD}",
}


def test_what_is_secret_is_never_shown() -> None:
    settings = replace(Settings(), **SECRETS)

    shown = [repr(settings), str(settings), f"{settings}", repr([settings]), repr(list(settings.__rich_repr__()))]

    assert not [text for text in shown if PASSWORD in text]
    assert "http_port=8080" in repr(settings)
    assert "postgres_dsn='***'" in repr(settings)
    assert "postgres_dsn=None" in repr(Settings())
    assert asdict(settings)["postgres_dsn"] == SECRETS["postgres_dsn"]


def test_every_secret_is_a_setting_and_what_sounds_secret_is_one() -> None:
    sounding = {
        name
        for name in Settings.__struct_fields__
        if any(word in name.removesuffix("_per_key") for word in ("dsn", "key", "password", "proxy", "secret", "token"))
    }

    assert sounding == SECRET == SECRETS.keys()


def test_a_stop_waits_longer_than_any_attempt_may_take() -> None:
    info = msgspec.inspect.type_info(Timeout)
    assert isinstance(info, msgspec.inspect.Metadata)
    assert isinstance(info.type, msgspec.inspect.FloatType)
    longest = info.type.le or 0

    assert longest == LONGEST_TIMEOUT
    assert Settings.from_env({}).shutdown_grace >= longest + BESIDE_THE_REQUEST
    assert Settings.from_env({"TIMEMACHINE_SHUTDOWN_GRACE": "45"}).shutdown_grace == 45
    with pytest.raises(SettingsError, match="SHUTDOWN_GRACE must not be shorter than 45 seconds"):
        Settings.from_env({"TIMEMACHINE_SHUTDOWN_GRACE": "44.9", "TIMEMACHINE_DELIVERY_TIMEOUT": "1"})


@pytest.mark.parametrize("field", SECRETS)
def test_what_is_malformed_is_not_shown(field: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env({f"TIMEMACHINE_{field.upper()}": SECRETS[field], "TIMEMACHINE_HTTP_PORT": "many"})

    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("HTTP_PORT", value) for value in ("abc", "", "-1", "70000", "8080.5", "tcp://10.0.0.1:80")),
        *(("REQUEST_TIMEOUT", value) for value in ("soon", "0", "-1", "nan", "inf", "1e300")),
        *(("HTTP_KEEP_ALIVE", value) for value in ("0", "-1", "75s", "1.5", "", "99999999999999999999")),
        *((name, "inf") for name in ("ATTEMPTS_KEPT_DAYS", "DISABLE_AFTER_HOURS", "SHUTDOWN_GRACE")),
        ("DISABLE_AFTER_HOURS", "1e300"),
        ("ATTEMPTS_KEPT_DAYS", "1000000"),
        ("DEFAULT_SCHEME", "ftp"),
        *(("AUTH", value) for value in ("", "no", "None", "off", "key", "none ")),
        ("ALLOW_PRIVATE_TARGETS", "maybe"),
        *(("TASK_QUEUE", value) for value in ("", "q" * 241, "/_sys/jobs")),
        *(("EGRESS_PROXY", value) for value in ("ftp://proxy", "http://us:pw@proxy:65536", "http://us:pw@proxy..x")),
        ("EGRESS_PROXY", f"http://us:pw@{'p' * 64}:3128"),
        *(("METRICS_ADDRESS", value) for value in ("abc", "9464", ":9464", "localhost:9464", "1.2.3:9464", "::1:9464")),
        *(("METRICS_ADDRESS", value) for value in ("127.0.0.1:65536", "[::g]:9464", "127.0.0.1:9464 ")),
        ("ALLOWED_TARGETS", "10.0.0.1/8"),
        ("DENIED_TARGETS", "example.org"),
        ("POSTGRES_TRANSACTION_POOLING", "pgbouncer"),
        *(("MAX_DELIVERIES", value) for value in ("many", "10000000000000000000000")),
        ("BULK_PER_SECOND", "inf"),
    ],
)
def test_a_malformed_value_is_told_by_its_variable(setting: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^TIMEMACHINE_{setting}: .") as refusal:
        Settings.from_env({f"TIMEMACHINE_{setting}": value})

    assert "$" not in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        *(("AUTH", value, "`keys`, `none` or `none-on-any-address`") for value in ("None", "off", "")),
        *(("LOG_LEVEL", value, "`debug`, `info`, `warning` or `error`") for value in ("verbose", "INFO", "")),
        *(("DEFAULT_SCHEME", value, "`https` or `http`") for value in ("ftp", "HTTPS", "https://")),
        *(("ALLOW_PRIVATE_TARGETS", value, "`true` or `false`") for value in ("yes", "on", "")),
        ("POSTGRES_TRANSACTION_POOLING", "transaction", "`true` or `false`"),
        ("EGRESS_PROXY", "https://proxy", "`http://[user:password@]host[:port]`"),
    ],
)
def test_a_value_that_is_none_of_a_few_is_told_which_they_are(setting: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env({f"TIMEMACHINE_{setting}": value})

    assert str(refusal.value) == f"TIMEMACHINE_{setting}: it must be {expected}"


def test_whatever_has_a_few_values_says_which() -> None:
    few = msgspec.inspect.EnumType | msgspec.inspect.LiteralType | msgspec.inspect.BoolType
    info = msgspec.inspect.type_info(Settings)
    assert isinstance(info, msgspec.inspect.StructType)
    fields = [field.name for field in info.fields if isinstance(field.type, few)]

    assert len(fields) == 5
    for name in fields:
        with pytest.raises(SettingsError, match=f"^TIMEMACHINE_{name.upper()}: it must be `\\w+`.* or `"):
            Settings.from_env({f"TIMEMACHINE_{name.upper()}": "nonsense"})


@pytest.mark.parametrize("value", ["", "0.0.0.0:9464", "127.0.0.1:0", "[::]:9464", "[2001:db8::1]:65535"])
@pytest.mark.parametrize("setting", ["metrics_address", "health_address"])
def test_metrics_and_health_are_served_at_any_address(setting: str, value: str) -> None:
    assert getattr(Settings.from_env({f"TIMEMACHINE_{setting.upper()}": value}), setting) == value


@pytest.mark.parametrize("value", ["", " , ", "shop/orders", " shop/orders ,a.b/c@d,shop/orders"])
def test_routes_of_metrics_are_named_with_their_dbs(value: str) -> None:
    named = Settings.from_env({"TIMEMACHINE_METRICS_ROUTES": value}).named_routes

    assert named == {part.strip() for part in value.split(",") if part.strip()}


@pytest.mark.parametrize(
    "value",
    ["orders", "/orders", "shop/", "shop/orders/x", "shop/or ders", "shop/..", ",".join(f"d/r{n}" for n in range(101))],
)
def test_what_is_no_list_of_routes_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_METRICS_ROUTES: it must be up to 100 routes as `db/route`"):
        Settings.from_env({"TIMEMACHINE_METRICS_ROUTES": value})


def test_an_api_may_stop_without_a_drain() -> None:
    assert Settings.from_env({"TIMEMACHINE_HTTP_DRAIN": "0"}).http_drain == 0


@pytest.mark.parametrize(
    "value", ["http://proxy", "http://us:p%40w@proxy.example.org:65535/", "http://[2001:db8::1]:1"]
)
def test_a_proxy_is_at_any_address(value: str) -> None:
    assert Settings.from_env({"TIMEMACHINE_EGRESS_PROXY": value}).egress_proxy == value


@pytest.mark.parametrize("name", ["TIMEMACHINE_POSTGRES_DSN", "TIMEMACHINE_LOG_LEVEL", "TIMEMACHINE_SERVICE_HOST"])
def test_a_variable_that_is_not_utf_8_is_named_and_not_shown(name: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_env({name: f"{PASSWORD}\udcff"})

    assert str(refusal.value) == f"{name}: it is not UTF-8"
    assert refusal.value.__suppress_context__


def test_what_others_set_need_not_be_utf_8() -> None:
    assert Settings.from_env({"FOO": "\udcff", "TIMEMACHINE_HTTP_PORT": "1"}).http_port == 1


LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1", "localhost")
ANY = ("0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "example.org", "localhost.example.org", "", "127.1")  # noqa: S104


@pytest.mark.parametrize("host", LOOPBACK)
def test_without_keys_the_api_serves_this_machine(host: str) -> None:
    Settings.from_env({"TIMEMACHINE_AUTH": "none", "TIMEMACHINE_HTTP_HOST": host}).check_auth()
    assert is_loopback(host)


@pytest.mark.parametrize("host", ANY)
def test_without_keys_the_api_serves_nobody_else_unless_that_is_said(host: str) -> None:
    env = {"TIMEMACHINE_HTTP_HOST": host}
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_AUTH=none lets everybody"):
        Settings.from_env(env | {"TIMEMACHINE_AUTH": "none"}).check_auth()
    for auth in ("keys", "none-on-any-address"):
        Settings.from_env(env | {"TIMEMACHINE_AUTH": auth}).check_auth()
    Settings.from_env(env).check_auth()
    assert Settings.from_env(env).auth == "keys"


def test_an_idle_connection_is_kept_longer_than_load_balancers_do() -> None:
    assert Settings.from_env({}).http_keep_alive > 60


def test_two_values_that_do_not_fit_are_told_by_their_variables() -> None:
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_SHUTDOWN_GRACE must not be shorter than 45 seconds"):
        Settings.from_env({"TIMEMACHINE_SHUTDOWN_GRACE": "5"})


def test_a_malformed_proxy_is_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_EGRESS_PROXY: ") as refusal:
        Settings.from_env({"TIMEMACHINE_EGRESS_PROXY": f"ftp://us:{PASSWORD}@proxy"})

    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://us:hunter2/x@db/x",
        "postgresql://us:hunter2#x@db/x",
        "postgresql://us:hunter2?x@db/x",
        "postgresql://us:hunter2[x@db/x",
        "postgresql://us:x@db:hunter2/x",
        "postgresql://us@db/x?hunter2",
        "postgresql://us:hunter2@x@db/x",
        "postgresql://us:hunter2%ff@db/x",
        "postgresql://us:hunter2%00@db/x",
        "postgresql://us:hunter2@db/x%00y",
        "postgresql://us:hunter2@db%00/x",
        "postgresql://us:hunter2@db/x?application_name=%00",
        "postgresql://us:hunter2\n@db/x",
        "postgresql://us:hunter2@d\tb/x",
        "postgresql://us:hunter2@db/x?sslm\r\node=verify-full",
        "postgresql://us:hunter2@[::1]%23:5433/x",
        "postgresql://us:hunter2@one,[::1]x:5433/x",
        "postgresql://us:hunter2@/x?host=[::1]:54%2333",
        "postgresql://us:hunter2@/x?host=x[::1]",
        "postgresql://us:5?hunter2=1&hunter2=1@db/x",
        "postgresql://us:?hunter2@db/x?sslmode=verify-full",
        "postgresql://us:5?hunter2@db/x?sslmode=verify-full",
        "postgresql://us:5?hunter2=1@db/x",
        "postgresql://us:hunter2%@db/x",
        "postgresql://us:hunter2%zz@db/x",
        "postgresql://us:hunter2 @db/x",
        "postgresql://us:hunter2@one, two/x",
        "postgresql://us:hunter2@db/x?host=one, two",
        "postgresql://us@db/x?password=hunter2+w",
        "postgresql://us:hunter2@db/x?application_name=a b",
        "postgresql://us:hunter2@db/x?SSLMODE=verify-full",
        "postgresql://us:hunter2@db/x?ssl%6Dode=verify-full",
        "postgresql://us:hunter2@db/x?Client_Encoding=latin1",
        "postgresql://us:hunter2@db/x?%20sslmode=verify-full",
        "postgresql://us:hunter2@db/x?=y",
        "postgresql://us:hunter2@db/x?options=-cx=y",
        "postgresql://us@?gsslib==hunter2/5:5/x",
        "postgresql://us:1/x?gsslib=hunter2@db/x",
        "postgresql://us:1/x?ssl_min_protocol_version=hunter2@db/x",
        "postgresql://us:1/x?target_session_attrs=hunter2@db/x",
        "postgresql://us:5/hunter2@db/x",
        "postgresql://us:1/hunter2?a=b@db/x?sslmode=disable",
        "postgresql://us:hunter2@/x?host=[::1]:\N{ARABIC-INDIC DIGIT FIVE}",
        "postgresql://us:hunter2@/x?host=db:5_432",
        "postgresql://us:hunter2@/x?port=5_432",
        "postgresql://us:hunter2@/x?port=%2B5432",
        "hunter2",
    ],
)
async def test_a_malformed_dsn_is_refused_at_once_and_not_shown(dsn: str) -> None:
    with pytest.raises(SettingsError, match="TIMEMACHINE_POSTGRES_DSN") as refusal:
        async with open_pool(replace(Settings(), postgres_dsn=dsn)):
            pass

    assert PASSWORD not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://db/x",
        "postgresql://us:p%2Fw@db:5432/x?sslmode=require&target_session_attrs=any",
        "postgresql://us:pw@one:5432,two:5433/x",
        "postgresql://us:pw@one,[::1]:5433/x",
        "postgresql://us:pw@/x?host=[::1]:5433,two",
        "postgresql:///?host=one,two&port=5432,5433&dbname=x&user=us&password=pw",
        "postgres://us:pw@[::1]:5432/x",
        "postgresql:///x?host=/run/postgresql",
        "postgresql:///x?host=%2Frun%2Fpostgresql,/tmp",
        "postgresql://%2Frun%2Fpostgresql/x",
        "postgresql://us:p:w,x&y=z;+@[fe80::1%25eth0]:5433/x%2Fy",
        "postgresql://us%40server:p%C3%A4ss@db/x?",
        "postgresql://us:päss@bücher.example/x",
        "postgresql://us:pw@db.example.org./x?options=endpoint%3Done&search_path=here",
        "postgresql://db/x?user=me@server&application_name=a@b%231",
        "postgresql://us:pw@db/x?hostaddr=&require_auth=&client_encoding=&channel_binding=",
        "postgresql://us:pw@db/x?application_name=&options=",
        "postgresql://db/x?application_name=a@b",
    ],
)
async def test_a_dsn_of_any_shape_is_taken(dsn: str) -> None:
    async with open_pool(replace(Settings(), postgres_dsn=dsn)):
        pass


@pytest.mark.parametrize(
    ("dsn", "text", "addresses"),
    [
        ("us:pw@one,[::1]:5433/x", "us:pw@/x", (("one", 5432), ("::1", 5433))),
        ("us:pw@[::1],two", "us:pw@", (("::1", 5432), ("two", 5432))),
        ("[::1]:1,[::2]:2/?user=us&connect_timeout=3", "?user=us", (("::1", 1), ("::2", 2))),
        ("one,[fe80::1%25eth0]/x?sslmode=require", "/x?sslmode=require", (("one", 5432), ("fe80::1%eth0", 5432))),
        ("[::1]:5433/x?", "/x", (("::1", 5433),)),
        ("one,two:5433/x?connect_timeout=3", "/x", (("one", 5432), ("two", 5433))),
        ("[::1]:5432,%2Frun:5433/x", "/x", (("::1", 5432), ("/run/.s.PGSQL.5433", 5433))),
        ("%2Frun:5433,[::1]:5432/x", "/x", (("/run/.s.PGSQL.5433", 5433), ("::1", 5432))),
        ("[::1],%3A%3A2/x", "/x", (("::1", 5432), ("::2", 5432))),
        ("/x?host=[::1]:5433,two", "/x?host=[::1]:5433,two", (("::1", 5433), ("two", 5432))),
        ("/x?host=/run,two&port=1,2", "/x?host=/run,two&port=1,2", (("/run/.s.PGSQL.1", 1), ("two", 2))),
    ],
)
async def test_hosts_are_told_apart_before_they_are_decoded(
    dsn: str, text: str, addresses: tuple[tuple[str, int], ...]
) -> None:
    settings = replace(Settings(), postgres_dsn=f"postgresql://{dsn}")

    assert read_dsn(settings) == Dsn(f"postgresql://{text}", addresses)
    async with open_pool(settings):
        pass


def test_hosts_that_the_environment_names_are_tried_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "one,two")
    monkeypatch.setenv("PGPORT", "5433")

    assert read_dsn(replace(Settings(), postgres_dsn="postgresql:///x")).addresses == (("one", 5433), ("two", 5433))
    assert read_dsn(replace(Settings(), postgres_dsn="postgresql://db/x")).addresses == (("db", 5433),)
    assert read_dsn(replace(Settings(), postgres_dsn="postgresql://db:1/x")).addresses == (("db", 1),)


@pytest.mark.parametrize("port", ["x", "1,2"])
def test_a_port_of_the_environment_does_not_matter_where_one_is_said(
    monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setenv("PGPORT", port)

    assert read_dsn(replace(Settings(), postgres_dsn="postgresql://db:5433/x")).addresses == (("db", 5433),)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("db..example/x", "a host is no name"),
        (f"{'d' * 64}.example/x", "a host is no name"),
        (f"one,{'d' * 64}/x", "a host is no name"),
        ("/x?host=db..example", "a host is no name"),
        (":5433/x", "a host is no name"),
        ("db,:5433/x", "a host is no name"),
        ("db:0/x", "a port must be 1 to 65535"),
        ("/x?host=db&port=65536", "a port must be 1 to 65535"),
        ("/x?host=one,two&port=1,2,3", "could not match 3 port numbers to 2 hosts"),
        ("db/x?sslmode=nonsense", "must be one of: disable, allow, prefer, require, verify-ca, verify-full"),
        ("db/x?sslmode=verify-full&sslrootcert=/nowhere", "a certificate or key that it names"),
        ("db/x?sslmode=verify-full&sslrootcert=system", "sslrootcert=/etc/ssl/certs/ca-certificates.crt"),
        ("db/x?sslcert=/nowhere", "a certificate or key that it names"),
        ("db/x?sslnegotiation=maybe", "must be one of: postgres, direct"),
        ("db/x?ssl_min_protocol_version=TLSv9", "No such TLS version"),
        ("db/x?target_session_attrs=nonsense", "target_session_attrs"),
        ("db/x?host=other", "nothing may be said twice"),
        ("db:5433/x?port=5434", "nothing may be said twice"),
        ("db/x?port=5433", "a port where its host does"),
        ("[::1]/x?port=5433", "a port where its host does"),
        ("db/x?dbname=y", "nothing may be said twice"),
        ("db?dbname=x&database=y", "nothing may be said twice"),
        ("db/x?user=other", "nothing may be said twice"),
        ("db/x?password=other", "nothing may be said twice"),
        ("db/x?sslmode=verify-full&sslmode=disable", "nothing may be said twice"),
        ("/x?host=one:5433&port=5434", "nothing may be said twice"),
        ("/x?host=one,[::1]:5433&port=5434,5435", "nothing may be said twice"),
        ("db//?dbname=y", "nothing may be said twice"),
        ("db/x?user=", "nothing may be said twice"),
        ("db/x?sslmode=", "the option `sslmode` has no value"),
        ("db/x?target_session_attrs=", "the option `target_session_attrs` has no value"),
        ("db?dbname=", "the option `dbname` has no value"),
        ("db/x?sslrootcert=system", "asyncpg does not know `sslrootcert=system`"),
        ("db/x?ssl=true", "the option `ssl`"),
        ("db/x?sslcrldir=/nowhere", "the option `sslcrldir`"),
        ("db/x?sslcertmode=disable", "the option `sslcertmode`"),
        ("db/x?min_protocol_version=3.2", "the option `min_protocol_version`"),
        ("one%2Ctwo/x", "a host is no name"),
        ("db%2Fx/x", "a host is no name"),
        (f"{'d.' * 127}d/x", "a host is no name"),
        ("db/x?service=here", "the option `service`"),
        ("db/x#y", "write %23 in place of #"),
        ("db/x?application_name=a#1&sslmode=verify-full", "write %23 in place of #"),
        ("db/x?password=a#b@c", "write %23 in place of #"),
        ("db/x?sslmode=require&channel_binding=require", "asyncpg has no channel binding"),
        ("db/x?channel_binding=prefer&channel_binding=require", "nothing may be said twice"),
        ("db/x?channel_binding=prefer%23", "must be `disable` or `prefer`"),
        ("db/x?gssencmode=require", "the option `gssencmode`"),
        ("db/x?hostaddr=192.0.2.1", "the option `hostaddr`"),
        ("db/x?require_auth=scram-sha-256", "the option `require_auth`"),
        ("db/x?client_encoding=latin1", "the option `client_encoding`"),
        ("[::1],a%2Cb:2/x", "a host is no name"),
        ("[::1],db%3A5433/x", "a host is no name"),
        ("db%3A5433/x", "a host is no name"),
        ("[::1],%5B%3A%3A2%5D:5/x", "a host is no name"),
        ("%2Ftmp:65536,[::1]/x", "a port must be 1 to 65535"),
        ("%2Ftmp:0,[::1]/x", "a port must be 1 to 65535"),
        ("/x?host=/tmp&port=0", "a port must be 1 to 65535"),
        ("/x?host=/tmp/.s.PGSQL.5432&port=5433", "a port where its host does"),
        ("/x?host=/tmp/.s.PGSQL.x", "the path of a Unix socket"),
        (f"/x?host=/{'d' * 107}", "the path of a Unix socket has at most 107 bytes"),
        ("db/x?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2", "no version of TLS"),
        (
            "db/x?sslmode=prefer&ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
            "no version of TLS",
        ),
        ("db/x?sslmode=__weakrefoffset__", "`sslmode` is none that there is"),
        ("db/x?sslmode=__dictoffset__", "`sslmode` is none that there is"),
        ("db/x?search_path=", "the option `search_path` has no value"),
        ("db/x?target_session_attrs=standby", "the service writes"),
        ("db/x?target_session_attrs=prefer-standby", "the service writes"),
        ("db/x?target_session_attrs=read-only", "the service writes"),
        (
            f"/x?host=/tmp&sslmode=verify-full&sslrootcert={certifi.where()}&channel_binding=require",
            "asyncpg has no channel binding",
        ),
    ],
)
def test_a_dsn_that_nothing_could_connect_with_is_refused_with_the_reason(rest: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_POSTGRES_DSN") as refusal:
        read_dsn(replace(Settings(), postgres_dsn=f"postgresql://us:{PASSWORD}@{rest}"))

    assert reason in str(refusal.value)
    assert PASSWORD not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    "rest",
    [
        *("a,b,/x", "a,,b/x", "/x?host=a,", "db/x?sslmode=parse"),
        *("[::1%5D:54981],db/x", "[::1%5Dx],db/x", "[1.2.3.4]/x", "[db],one/x", "[::g],one/x", "one,[:::1]/x"),
    ],
)
def test_what_asyncpg_breaks_off_at_is_refused(rest: str) -> None:
    with pytest.raises(SettingsError, match=r"^TIMEMACHINE_POSTGRES_DSN") as refusal:
        read_dsn(replace(Settings(), postgres_dsn=f"postgresql://us:{PASSWORD}@{rest}"))

    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgresql://db/x\n", "postgresql:///x"),
        (" postgresql://db/x \r\n", "postgresql:///x"),
        ("postgresql://db/", "postgresql://"),
        ("postgresql:///?host=/run/postgresql", "postgresql://?host=/run/postgresql"),
        ("postgresql://db/?dbname=y", "postgresql://?dbname=y"),
    ],
)
def test_blanks_around_a_dsn_and_a_slash_without_a_database_say_nothing(given: str, taken: str) -> None:
    assert read_dsn(replace(Settings(), postgres_dsn=given)).text == taken


def test_what_takes_the_place_of_the_gaps_of_a_dsn_is_checked_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "nonsense")

    with pytest.raises(SettingsError, match="or a PG\\* variable that it leaves something to: `sslmode` parameter"):
        read_dsn(replace(Settings(), postgres_dsn="postgresql://db/x"))


@pytest.mark.parametrize("error", [KeyError("uid not found: 7"), OSError("No username set")], ids=["3.11", "3.13"])
def test_a_dsn_without_a_user_is_refused_where_the_process_has_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def nobody() -> str:
        raise error

    monkeypatch.delenv("PGUSER", raising=False)
    monkeypatch.setattr("getpass.getuser", nobody)

    with pytest.raises(SettingsError, match=r"the user that it does not name, cannot be found: .*(not found|No user)"):
        read_dsn(replace(Settings(), postgres_dsn="postgresql://db/x"))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("?connect_timeout=10", ""),
        ("?sslmode=require&channel_binding=prefer&application_name=a%20b", "?sslmode=require&application_name=a%20b"),
        ("?connect_timeout=10&keepalives=1&options=-c%20x%3Dy", "?options=-c%20x%3Dy"),
        ("?gssencmode=disable&client_encoding=UTF8&sslmode=disable", "?sslmode=disable"),
    ],
)
async def test_options_that_only_libpq_knows_are_left_out_and_told(
    given: str, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(Settings(), postgres_dsn=f"postgresql://us:{PASSWORD}@db/x{given}")
    caplog.set_level("INFO")

    async with open_pool(settings):
        pass

    assert read_dsn(settings).text == f"postgresql://us:{PASSWORD}@/x{taken}"
    (line,) = [record for record in caplog.records if "are left out" in record.message]
    assert vars(line)["options"]
    assert PASSWORD not in str(vars(line))


def test_channel_binding_may_be_asked_for_where_the_server_is_verified_in_full() -> None:
    options = f"sslmode=verify-full&sslrootcert={certifi.where()}"
    settings = replace(Settings(), postgres_dsn=f"postgresql://us:pw@db/x?{options}&channel_binding=require")

    assert read_dsn(settings).text == f"postgresql://us:pw@/x?{options}"
