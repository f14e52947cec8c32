import msgspec.inspect
import pytest
from msgspec.structs import asdict, replace

from api.schemas import Timeout
from timemachine.domain.errors import SettingsError
from timemachine.postgres.pool import open_pool
from timemachine.settings import BESIDE_THE_REQUEST, LONGEST_TIMEOUT, SECRET, Settings

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
        if any(word in name for word in ("dsn", "key", "password", "proxy", "secret", "token"))
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
        ("ALLOW_PRIVATE_TARGETS", "maybe"),
        ("TASK_QUEUE", ""),
        ("EGRESS_PROXY", "ftp://proxy"),
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
        "postgres://us:pw@[::1]:5432/x",
        "postgresql:///x?host=/run/postgresql",
    ],
)
async def test_a_dsn_of_any_shape_is_taken(dsn: str) -> None:
    async with open_pool(replace(Settings(), postgres_dsn=dsn)):
        pass
