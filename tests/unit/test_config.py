"""The settings: what is taken, what stops the start and with which words, and that the README says the same."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import config
from engine.config import SETTINGS, Settings, Source, is_loopback, load
from engine.dotenv import parse_dotenv
from engine.errors import SettingsError
from engine.settings_table import MASK, Setting

ROOT = Path(__file__).parents[2]
SECRET = "sm_do_not_print_me_0123456789"


def _full(name: str) -> str:
    return name if name.startswith("STRIPE_") else config.PREFIX + name


def refusal(**environ: str) -> str:
    """The one line with which `load` refuses; names without their prefix."""
    with pytest.raises(SettingsError) as caught:
        load({_full(name): value for name, value in environ.items()}, None, {})
    line = str(caught.value)
    assert "\n" not in line
    assert "\r" not in line
    return line


def test_with_nothing_set_every_default_is_the_documented_one() -> None:
    assert load({}, None, {}) == Settings(
        host="127.0.0.1",
        port=3000,
        data_dir="./data",
        auth="off",
        admin_key=None,
        key_pepper=None,
        shards=8,
        lateness_us=48 * 3600 * 1_000_000,
        late_policy="review",
        max_batch=1000,
        max_body_bytes=1 << 20,
        max_meta_bytes=4096,
        max_json_depth=32,
        verify=False,
        tenant_rate_limit=0,
        snapshot_every_events=1_000_000,
        retention_days=0,
        cors_origins=(),
        log_level="info",
        log_format="auto",
        shutdown_grace_seconds=10.0,
        fast_lane="on",
        stripe_secret_key=None,
        stripe_test_secret_key=None,
        stripe_webhook_secrets=(),
        stripe_api_base=None,
        stripe_meter_events_base=None,
        simulator="auto",
        stripe_process="auto",
        push_interval_us=60_000_000,
        anchor=None,
        anchor_interval_us=300_000_000,
        reconcile_interval_us=3_600_000_000,
        reconcile_lag_us=300_000_000,
        epsilon=Fraction(1, 200),
    )


def test_a_flag_wins_over_the_environment_and_that_over_the_dotenv_file() -> None:
    name = "STRIPEMETER_PORT"
    dotenv = f"{name}=3001\nSTRIPEMETER_SHARDS=3\n"
    assert load({}, dotenv, {}).port == 3001
    assert load({name: "3002"}, dotenv, {}).port == 3002
    settings = load({name: "3002"}, dotenv, {name: "3003"})
    assert (settings.port, settings.shards) == (3003, 3)
    found = config.sources({name: "3002"}, dotenv, {})
    assert found[name] == Source("3002", "environment")
    assert found["STRIPEMETER_SHARDS"] == Source("3", ".env")
    assert found["STRIPEMETER_HOST"] == Source("127.0.0.1", "default")


def test_an_empty_value_counts_as_absent() -> None:
    settings = load({"STRIPEMETER_PORT": "", "STRIPEMETER_ADMIN_KEY": "  "}, None, {})
    assert (settings.port, settings.admin_key) == (3000, None)


WRONG = [
    ("PORT", "abc"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "٣٠٠٠"),
    ("PORT", "1e3"),
    ("PORT", "9" * 5000),
    ("HOST", "http://example.com"),
    ("HOST", "127.0.0.1:3000"),
    ("HOST", "a b"),
    ("HOST", "-x"),
    ("AUTH", "on"),
    ("SHARDS", "0"),
    ("SHARDS", "65"),
    ("LATENESS_HOURS", "-1"),
    ("LATENESS_HOURS", "0.0000000001"),
    ("LATENESS_HOURS", "nan"),
    ("LATENESS_HOURS", "1/3"),
    ("LATENESS_HOURS", "8785"),
    ("LATE_POLICY", "drop"),
    ("MAX_BATCH", "0"),
    ("MAX_BATCH", "10001"),
    ("MAX_BODY_BYTES", "1023"),
    ("MAX_BODY_BYTES", str((16 << 20) + 1)),
    ("MAX_META_BYTES", "65537"),
    ("MAX_JSON_DEPTH", "3"),
    ("MAX_JSON_DEPTH", "257"),
    ("VERIFY", "yes"),
    ("TENANT_RATE_LIMIT", "1.5"),
    ("SNAPSHOT_EVERY_EVENTS", "999"),
    ("CORS_ORIGINS", "*"),
    ("CORS_ORIGINS", "https://a.example/path"),
    ("CORS_ORIGINS", "https://a.example,b.example"),
    ("LOG_LEVEL", "loud"),
    ("LOG_FORMAT", "xml"),
    ("SHUTDOWN_GRACE_SECONDS", "0"),
    ("SHUTDOWN_GRACE_SECONDS", "601"),
    ("STRIPE_API_BASE", "api.stripe.com"),
    ("STRIPE_API_BASE", "http://127.0.0.1:1/?x=1"),
    ("STRIPE_METER_EVENTS_BASE", "ftp://x"),
    ("SIMULATOR", "yes"),
    ("ANCHOR", "s3://"),
    ("ANCHOR", "s3://UPPER/x"),
    ("ANCHOR", "https://user:secret@host/x"),
    ("ANCHOR", "ftp://host/x"),
    ("ANCHOR_INTERVAL_SECONDS", "0"),
    ("ANCHOR_INTERVAL_SECONDS", "86401"),
    ("PUSH_INTERVAL_SECONDS", "0"),
    ("PUSH_INTERVAL_SECONDS", "0.001"),
    ("PUSH_INTERVAL_SECONDS", "86401"),
    ("PUSH_INTERVAL_SECONDS", "0.0100000001"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_one_line_that_names_the_variable_and_what_is_allowed(
    name: str, value: str
) -> None:
    line = refusal(**{name: value})
    assert line.startswith(f"{_full(name)}=")
    setting = next(s for s in SETTINGS if s.name == _full(name))
    assert line.endswith(f"; allowed: {setting.allowed}")
    assert len(line) < 300, "a long value is cut"


def test_a_value_with_line_breaks_still_gives_one_line() -> None:
    assert "\\n" in refusal(LOG_LEVEL="a\nb")


@pytest.mark.parametrize("name", [s.name for s in SETTINGS if s.secret])
@pytest.mark.parametrize("value", ["tiny", SECRET + " " + SECRET, SECRET + "é"])
def test_a_refused_secret_is_never_echoed(name: str, value: str) -> None:
    line = refusal(**{name.removeprefix(config.PREFIX): value})
    assert line.startswith(f"{name}: ")
    assert value not in line
    assert SECRET not in line


def test_a_record_and_its_table_mask_every_secret() -> None:
    starts = {
        "STRIPE_SECRET_KEY": "sk_live_",
        "STRIPE_TEST_SECRET_KEY": "rk_test_",
        "STRIPE_WEBHOOK_SECRET": "whsec_",
    }
    environ = {s.name: starts.get(s.name, "") + SECRET for s in SETTINGS if s.secret}
    assert len(environ) == 5
    settings = load(environ, None, {})
    assert settings.admin_key == settings.key_pepper == SECRET
    assert settings.stripe_webhook_secrets == ("whsec_" + SECRET,)
    assert repr(settings).count(MASK) == 5
    assert SECRET not in repr(settings)
    assert SECRET not in f"{settings}"
    assert SECRET not in repr(config.masked(config.sources(environ, None, {})))
    assert repr(load({}, None, {})).count(MASK) == 0, "what is not set is shown as None"


def test_a_name_that_is_no_setting_stops_the_start_with_a_suggestion() -> None:
    assert refusal(SHARD="8").endswith("did you mean STRIPEMETER_SHARDS?")
    assert refusal(LATENES_HOURS="8").endswith("did you mean STRIPEMETER_LATENESS_HOURS?")
    with pytest.raises(SettingsError, match="did you mean STRIPEMETER_PORT"):
        load({"stripemeter_port": "1"}, None, {})
    with pytest.raises(SettingsError, match="STRIPEMETER_PRT"):
        load({}, "STRIPEMETER_PRT=1", {})
    load({"STRIPE_DEVICE_NAME": "x", "PATH": "/bin"}, "OTHER=1", {})


def test_problems_lists_every_reason_and_load_raises_the_first() -> None:
    environ = {"STRIPEMETER_PORT": "x", "STRIPEMETER_SHARDS": "y", "STRIPEMETER_ZZZ": "z"}
    lines = config.problems(environ, None, {})
    assert len(lines) == 3
    with pytest.raises(SettingsError) as caught:
        load(environ, None, {})
    assert str(caught.value) == lines[0]
    assert config.problems({}, None, {}) == []
    assert config.problems({}, "what is this", {}) == [
        ".env line 1: not an assignment; allowed: KEY=VALUE and # comments"
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_on_loopback_auth_is_off_unless_asked_for(host: str) -> None:
    assert is_loopback(host)
    assert load({"STRIPEMETER_HOST": host}, None, {}).auth == "off"
    required = load({"STRIPEMETER_HOST": host, "STRIPEMETER_AUTH": "required"}, None, {})
    assert required.auth_required


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example"])
def test_beyond_loopback_auth_is_required_and_cannot_be_switched_off(host: str) -> None:
    assert not is_loopback(host)
    assert load({"STRIPEMETER_HOST": host}, None, {}).auth_required
    line = refusal(HOST=host, AUTH="off")
    assert line.startswith("STRIPEMETER_AUTH=off: ")
    assert host in line
    with pytest.raises(SettingsError, match="STRIPEMETER_AUTH"):
        load({"STRIPEMETER_AUTH": "off"}, None, {"STRIPEMETER_HOST": host})


def test_lateness_is_exact_in_microseconds() -> None:
    def lateness_us(hours: str) -> int:
        return load({"STRIPEMETER_LATENESS_HOURS": hours}, None, {}).lateness_us

    assert lateness_us("0") == 0
    assert lateness_us("0.1") == 360_000_000
    assert lateness_us("72") == 259_200_000_000
    assert lateness_us("0.00000001") == 36
    assert lateness_us("8784") == 366 * 86_400 * 1_000_000


def test_origins_are_a_tuple_in_lower_case() -> None:
    settings = load(
        {"STRIPEMETER_CORS_ORIGINS": "https://A.example, http://localhost:5173,"}, None, {}
    )
    assert settings.cors_origins == ("https://a.example", "http://localhost:5173")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1", {"A": "1"}),
        ("  export A = 1  \n\n# comment\nB=2", {"A": "1", "B": "2"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=", {"A": ""}),
        ("A=a b # comment", {"A": "a b"}),
        ("A=a#b", {"A": "a#b"}),
        ("A=# nothing", {"A": ""}),
        ("A='a # \"b' # comment", {"A": 'a # "b'}),
        ('A="a\\n\\"b\\" \\\\ \\q"', {"A": 'a\n"b" \\ \\q'}),
        ("A='a\\n'", {"A": "a\\n"}),
        ("\ufeffA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=x=y==", {"A": "x=y=="}),
        ("A=$B", {"A": "$B"}),
    ],
)
def test_a_dotenv_file_is_read_as_a_shell_would(text: str, expected: dict[str, str]) -> None:
    assert parse_dotenv(text) == expected


@pytest.mark.parametrize(
    "line", ["nonsense", "1A=2", "A B=1", 'A="x', "A='x", 'A="x" y', "A='it''s'", "=1"]
)
def test_a_bad_dotenv_line_is_named_by_its_number_and_not_shown(line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_dotenv(f"GOOD=1\n{line}{SECRET if line[-1] not in chr(34) + chr(39) else ''}\n")
    assert str(caught.value).startswith(".env line 2: ")
    assert SECRET not in str(caught.value)
    assert "allowed: KEY=" in str(caught.value)


def test_a_dotenv_file_has_a_bound() -> None:
    with pytest.raises(SettingsError, match="at most"):
        parse_dotenv("#" * (1 << 20) + "#")


@given(st.text(max_size=200))
def test_any_dotenv_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_dotenv(text)
    except SettingsError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(SETTINGS), st.text(min_size=1, max_size=40))
def test_any_text_is_a_value_or_a_settings_error(setting: Setting, text: str) -> None:
    try:
        load({setting.name: text}, None, {})
    except SettingsError as error:
        assert str(error).startswith(("STRIPEMETER_", "STRIPE_"))
        assert len(str(error).splitlines()) == 1


def test_the_readme_shows_the_settings_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    begin, end = "<!-- settings:begin -->\n", "<!-- settings:end -->"
    assert readme.count(begin) == readme.count(end) == 1
    shown = readme.split(begin)[1].split(end)[0]
    assert shown.strip() == config.markdown_table().strip(), (
        "README.md is stale; put this between its settings markers:\n" + config.markdown_table()
    )


def test_the_table_of_settings_is_well_formed_markdown() -> None:
    for line in config.markdown_table().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 4


def test_a_reserved_name_does_not_stop_the_start_and_is_named() -> None:
    environ = {"STRIPEMETER_SMTP_URL": "smtp://x", "STRIPEMETER_URL": "http://127.0.0.1:3000"}
    assert config.load(environ, None, {}).port == 3000
    assert config.ignored(environ, None, {}) == ["STRIPEMETER_SMTP_URL", "STRIPEMETER_URL"]


LIVE_KEY = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
TEST_KEY = "rk_test_" + "4eC39HqLyjWDarjtT1zdp7dc"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_SECRET_KEY", "pk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"),
        ("STRIPE_TEST_SECRET_KEY", LIVE_KEY),
        ("STRIPE_WEBHOOK_SECRET", "whsec_0123456789abcdef,4eC39HqLyjWDarjtT1zdp7dc"),
        ("STRIPE_WEBHOOK_SECRET", ","),
    ],
)
def test_a_key_of_the_wrong_kind_stops_the_start_and_is_not_shown(name: str, value: str) -> None:
    line = refusal(**{name: value})
    assert line.startswith(f"{name}: ")
    assert "4eC39" not in line


def test_webhook_secrets_may_be_several_and_an_interval_is_exact() -> None:
    environ = {
        "STRIPE_WEBHOOK_SECRET": "whsec_0123456789, whsec_9876543210,",
        "STRIPEMETER_PUSH_INTERVAL_SECONDS": "0.05",
        "STRIPE_API_BASE": "http://[::1]:12111/",
    }
    settings = load(environ, None, {})
    assert settings.stripe_webhook_secrets == ("whsec_0123456789", "whsec_9876543210")
    assert settings.push_interval_us == 50_000
    assert settings.stripe_api_base == "http://[::1]:12111"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, True),
        ({"STRIPEMETER_HOST": "0.0.0.0"}, False),
        ({"STRIPEMETER_HOST": "0.0.0.0", "STRIPEMETER_SIMULATOR": "on"}, True),
        ({"STRIPE_SECRET_KEY": LIVE_KEY}, False),
        ({"STRIPE_TEST_SECRET_KEY": TEST_KEY}, False),
        ({"STRIPE_SECRET_KEY": LIVE_KEY, "STRIPEMETER_SIMULATOR": "on"}, True),
        ({"STRIPEMETER_SIMULATOR": "off"}, False),
    ],
)
def test_the_simulator_is_for_loopback_without_keys_or_when_asked_for(
    environ: dict[str, str], expected: bool
) -> None:
    assert load(environ, None, {}).uses_simulator is expected


@pytest.mark.parametrize(
    ("name", "value", "hidden"),
    [
        ("STRIPE_API_BASE", "https://meter:hunter2@proxy.example/", "hunter2"),
        ("STRIPEMETER_ANCHOR", "https://meter:hunter2@anchors.example/log", "hunter2"),
        ("STRIPEMETER_CORS_ORIGINS", "https://meter:hunter2@app.example", "hunter2"),
        ("STRIPE_API_BASE", LIVE_KEY, "4eC39"),
        ("STRIPEMETER_LATE_POLICY", f"whsec_{LIVE_KEY}", "4eC39"),
    ],
)
def test_a_secret_in_a_setting_that_holds_none_is_neither_in_the_refusal_nor_in_the_table(
    name: str, value: str, hidden: str
) -> None:
    [line] = config.problems({name: value}, None, {})
    assert line.startswith(f"{name}=")
    assert hidden not in line
    assert MASK in line
    table = config.masked(config.sources({name: value}, None, {}))
    assert hidden not in table[name].text
