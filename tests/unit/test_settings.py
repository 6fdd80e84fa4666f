"""Settings from the environment and options of a project: merged by rank, refused as a whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.config import PROFILES, ImageHosts, ProjectOptions, Settings, shown_address
from ml_backend.errors import SettingsError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Whatever the machine sets is not part of these tests."""
    for name in [*Settings.model_fields, *ProjectOptions.model_fields]:
        monkeypatch.delenv(f"AL_{name.upper()}", raising=False)


class TestProjectOptions:
    def test_defaults_are_the_papers(self):
        """20 images a round, 20 % of the labels for validation, patience 3."""
        options = ProjectOptions.resolve(environ={})

        assert (options.batch_size, options.min_labels_per_class, options.patience) == (20, 2, 3)
        assert (options.validation_share, options.loss) == (0.2, "weighted")

    def test_a_profile_gives_the_options_that_are_set_nowhere(self):
        best = ProjectOptions.resolve({"profile": "best"}, environ={})
        assert {name: getattr(best, name) for name in PROFILES["best"]} == PROFILES["best"]
        assert PROFILES["best"] != PROFILES["paper"] == {}
        assert ProjectOptions.resolve({"profile": "best"}, {"model_committee": "3"}, {}).committee == 3
        assert ProjectOptions.resolve({"profile": "paper"}, environ={"AL_PROFILE": "best"}).committee == 1
        # Another option that needs fewer networks gets them.
        assert ProjectOptions.resolve({"profile": "best", "passes": "7"}, environ={}).committee == 3
        assert ProjectOptions.resolve({"profile": "best", "retrain": "warm"}, environ={}).committee == 1
        # A stored record holds every option: it does not change with what a profile sets in a later version.
        assert ProjectOptions.model_validate(best.model_dump() | {"committee": 2}).committee == 2
        with pytest.raises(SettingsError, match=r"profile='fast' \(from extra_params\): input should be 'paper' or"):
            ProjectOptions.resolve({"profile": "fast"}, environ={})

    def test_the_connection_wins_over_the_tag_and_the_tag_over_the_environment(self):
        options = ProjectOptions.resolve(
            extra_params={"strategy": "bald"},
            attributes={"model_strategy": "margin", "model_passes": "30"},
            environ={"AL_STRATEGY": "random", "AL_PASSES": "40", "AL_EPOCHS": "7"},
        )

        assert (options.strategy, options.passes, options.epochs) == ("bald", 30, 7)

    @pytest.mark.parametrize(("strategy", "passes"), [("entropy", 50), ("batch_bald", 100)])
    def test_batch_bald_draws_twice_the_passes_unless_told(self, strategy, passes):
        assert ProjectOptions.resolve({"strategy": strategy}, environ={}).passes == passes
        assert ProjectOptions.resolve({"strategy": strategy, "passes": 60}, environ={}).passes == 60

    def test_text_becomes_the_type_of_the_option(self):
        """Attributes and variables are always text."""
        options = ProjectOptions.resolve(
            attributes={"model_prelabel": "true", "model_dropout": "0.25", "model_reserve": "all"}, environ={}
        )

        assert (options.prelabel, options.dropout, options.reserve) == (True, 0.25, "all")

    def test_other_attributes_and_variables_are_nobodys_business(self):
        """A Choices tag has attributes of its own, and the environment is full of other names."""
        options = ProjectOptions.resolve(
            attributes={"name": "severity", "choice": "single"}, environ={"AL_REDIS_URL": "redis://x", "HOME": "/"}
        )

        assert options == ProjectOptions()

    def test_every_mistake_is_reported_at_once_with_its_origin(self):
        with pytest.raises(SettingsError) as caught:
            ProjectOptions.resolve(
                extra_params={"strategi": "bald", "xyz": 1, "passes": 1},
                attributes={"model_strategy": "best"},
                environ={"AL_RESERVE": "-3"},
            )

        message = str(caught.value)
        assert "strategi (from extra_params): no such option; did you mean 'strategy'?" in message
        assert "xyz (from extra_params): no such option; known are profile, strategy" in message
        assert "passes=1 (from extra_params)" in message
        assert "model_strategy='best' (from Choices tag)" in message
        assert "batch_bald" in message
        assert "AL_RESERVE='-3': " in message
        assert len(message.split("; ")) >= 4

    def test_a_mistake_is_not_followed_by_its_consequences(self):
        """The default of `passes` waits for `strategy`, which is of no interest to who mistyped something else."""
        with pytest.raises(SettingsError) as refusal:
            ProjectOptions.resolve({"prelabel": "maybe"}, environ={})

        assert str(refusal.value).startswith("prelabel='maybe' (from extra_params)")
        assert "passes" not in str(refusal.value)

    def test_a_mistake_in_an_outranked_source_does_no_harm(self):
        """What is not used is not validated: the owner's value replaces the installation's wrong one."""
        assert ProjectOptions.resolve(extra_params={"passes": 30}, environ={"AL_PASSES": "many"}).passes == 30

    @pytest.mark.parametrize("value", [-1, "-1", "some", 1.5, None])
    def test_reserve_is_a_count_or_all(self, value):
        with pytest.raises(SettingsError, match="reserve="):
            ProjectOptions.resolve(extra_params={"reserve": value}, environ={})

    def test_training_cannot_stop_later_than_it_ends(self):
        """The wrong one is named, with the limit that the other one sets."""
        with pytest.raises(
            SettingsError, match=r"min_epochs='9' \(from Choices tag\): must be at most epochs, which is 8"
        ):
            ProjectOptions.resolve({"epochs": 8}, attributes={"model_min_epochs": "9"}, environ={})

        assert ProjectOptions.resolve({"epochs": 8, "min_epochs": 8}, environ={}).min_epochs == 8

    def test_a_long_value_is_not_repeated_whole(self):
        with pytest.raises(SettingsError) as refusal:
            ProjectOptions.resolve({"passes": "9" * 10_000, "x" * 10_000: 1}, environ={})

        assert len(str(refusal.value)) < 2000

    def test_a_committee_needs_passes_and_begins_anew(self) -> None:
        with pytest.raises(SettingsError, match=r"committee=6 .*at most half of passes, which is 10"):
            ProjectOptions.resolve({"passes": 10, "committee": 6}, environ={})
        with pytest.raises(SettingsError, match=r"retrain='warm' .*must be scratch with committee=2"):
            ProjectOptions.resolve({"retrain": "warm", "committee": 2}, environ={})

        assert ProjectOptions.resolve({"passes": 10, "committee": 5}, environ={}).committee == 5

    @settings(deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from([*ProjectOptions.model_fields, "unknown"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2),
            max_size=4,
        )
    )
    def test_any_json_gives_options_or_a_settings_error(self, extra_params):
        """Whatever an owner types into the connection, never another exception."""
        try:
            options = ProjectOptions.resolve(extra_params, environ={})
        except SettingsError:
            return

        assert ProjectOptions.resolve(options.model_dump(), environ={}) == options


class TestSettings:
    def test_reads_the_environment(self, monkeypatch):
        monkeypatch.setenv("AL_REDIS_URL", "redis://queue:6379/2")
        monkeypatch.setenv("AL_DEVICE", "cpu")

        loaded = Settings.load()

        assert (loaded.redis_url, loaded.device) == ("redis://queue:6379/2", "cpu")

    def test_every_wrong_variable_is_named(self, monkeypatch):
        monkeypatch.setenv("AL_DEVICE", "tpu")
        monkeypatch.setenv("AL_TIMEOUT_S", "0")

        with pytest.raises(SettingsError) as caught:
            Settings.load()

        assert "AL_DEVICE='tpu': input should be 'auto', 'cpu' or 'cuda'" in str(caught.value)
        assert "AL_TIMEOUT_S='0'" in str(caught.value)

    @pytest.mark.parametrize("only", [{"basic_auth_user": "al"}, {"basic_auth_pass": "secret"}])
    def test_user_and_password_go_together(self, only):
        """Half a credential would leave the backend open to everybody."""
        with pytest.raises(SettingsError, match="AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS go together"):
            Settings.load(**only)

    def test_secrets_are_not_printed(self):
        loaded = Settings.load(
            label_studio_api_key="key-123",
            basic_auth_user="al",
            basic_auth_pass="pass-456",
            redis_url="redis://:pass-789@queue/0",
        )

        assert not {"key-123", "pass-456", "pass-789"} & set(repr(loaded).replace("@", " ").replace(":", " ").split())
        assert "pass-" not in repr(loaded)
        assert "key-123" not in repr(loaded)

    def test_a_wrong_secret_is_not_repeated(self):
        with pytest.raises(SettingsError, match=r"AL_BASIC_AUTH_PASS=\(not shown\): ") as refusal:
            Settings.load(basic_auth_user="al", basic_auth_pass=456)

        assert "456" not in str(refusal.value)

    @pytest.mark.parametrize("user", ["rädiologie", "two words", "a@b.example", "100%", "it's", "ÿ"])
    @pytest.mark.parametrize(
        "password", ["gehëim ß", "a:b", "q\"uo'te", "100%41%zz", "\\#/?@$&;`", "in  ner", "ÿ\xa0x"]
    )
    def test_credentials_that_every_sender_can_send(self, user, password):
        """Tried on Label Studio 1.23.2: its own requests, the webhook, connect and doctor."""
        loaded = Settings.load(basic_auth_user=user, basic_auth_pass=password)

        assert loaded.basic_auth_pass is not None
        assert (loaded.basic_auth_user, loaded.basic_auth_pass.get_secret_value()) == (user, password)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (" lead", "begins or ends with a blank"),
            ("trail\n", "begins or ends with a blank"),
            ("line\nbreak", r"holds a control character \('\\n'\)"),
            ("tab\there", "control character"),
            ("nul\0", "control character"),
            ("Łukasz", "holds a character that Label Studio cannot send"),
            ("пароль", "holds characters that Label Studio cannot send"),
            ("euro€", "Latin-1"),
            ("\udce9", "cannot send"),  # what Python makes of bytes that are no UTF-8
        ],
    )
    def test_credentials_that_cannot_work_are_refused_by_name(self, text, words):
        with pytest.raises(SettingsError, match=rf"AL_BASIC_AUTH_USER=.*: .*{words}"):
            Settings.load(basic_auth_user=text, basic_auth_pass="secret")
        with pytest.raises(SettingsError, match=rf"AL_BASIC_AUTH_PASS=\(not shown\): .*{words}") as refusal:
            Settings.load(basic_auth_user="al", basic_auth_pass=text)
        assert text not in str(refusal.value)

    def test_a_user_with_a_colon(self):
        with pytest.raises(SettingsError, match="AL_BASIC_AUTH_USER='a:b': holds a colon"):
            Settings.load(basic_auth_user="a:b", basic_auth_pass="secret")

    @pytest.mark.parametrize("copied", ["key\n", " key ", "\r\n\tkey", "key"])
    def test_a_key_is_taken_without_the_blanks_around_it(self, copied):
        loaded = Settings.load(label_studio_api_key=copied)

        assert loaded.secrets == ("key",)

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("k ey", "holds a blank"),
            ("kéy", "not ASCII"),
            ("a\nb", "holds a blank"),
            ("'key'", "is in quotes"),
            ('"k"', "quotes"),
        ],
    )
    def test_what_is_no_key(self, key, words):
        with pytest.raises(SettingsError, match=rf"AL_LABEL_STUDIO_API_KEY=\(not shown\): .*{words}"):
            Settings.load(label_studio_api_key=key)

    @pytest.mark.parametrize("password", ["pa/ss", "pa#ss", "pa?ss", "pa[ss", "pa]ss", "1/2@x"])
    def test_an_address_of_redis_that_ends_within_its_password(self, password):
        with pytest.raises(SettingsError, match=r"AL_REDIS_URL=.not shown.* must be written as %XX") as refusal:
            Settings.load(redis_url=f"redis://:{password}@queue:6379/0")
        assert "ss" not in str(refusal.value).replace("password", "").replace("address", "")

    @pytest.mark.parametrize(
        "url", ["redis://:p%23%2f@queue:6379/0", "redis://u:p@ss@queue/0", "rediss://queue:1/0?ssl_ca_certs=/ca.pem"]
    )
    def test_addresses_of_redis(self, url):
        assert Settings.load(redis_url=f" {url}\n").redis_url == url

    @pytest.mark.parametrize(
        "url",
        [
            "ls:8080",
            "ftp://ls",
            "http://",
            "http://ls:port",
            "http://ls:0",
            "http://[::1",
            "http://l s",
            "http://ls?a=b",
        ],
    )
    def test_an_address_of_label_studio_that_is_none(self, url):
        with pytest.raises(SettingsError, match=r"AL_LABEL_STUDIO_URL is .*; expected http://host:port"):
            Settings.load(label_studio_url=url)

    @pytest.mark.parametrize("empty", [{"basic_auth_user": ""}, {"basic_auth_pass": ""}])
    def test_an_empty_credential_is_none(self, empty):
        """Else everybody who gives nothing would be let in."""
        with pytest.raises(
            SettingsError, match="is empty: give one, or unset AL_BASIC_AUTH_USER and AL_BASIC_AUTH_PASS both"
        ):
            Settings.load(**({"basic_auth_user": "al", "basic_auth_pass": "secret"} | empty))

    def test_image_hosts(self, monkeypatch):
        monkeypatch.setenv("AL_IMAGE_HOSTS", "Films.example, pacs.lan:8042,10.0.0.0/8")

        hosts = Settings.load().allowed_image_hosts

        assert hosts.hosts == {("films.example", None), ("pacs.lan", 8042)}
        assert hosts.reaches("10.255.0.1")
        assert not Settings.load(image_hosts=None).allowed_image_hosts.hosts

    @pytest.mark.parametrize(
        "wrong", ["https://films.example", "films.example/a", "*.example", "a b", "films.example:http", "10.0.0.1/8"]
    )
    def test_what_is_no_image_host(self, wrong):
        with pytest.raises(SettingsError, match=r"AL_IMAGE_HOSTS=.*10.0.0.0/8"):
            Settings.load(image_hosts=f"good.example,{wrong}")


class TestImageHosts:
    def test_a_port_counts(self):
        hosts = ImageHosts.parse("films.example,pacs.lan:8042")

        assert hosts.allows("FILMS.example", 443, usual=True)
        assert not hosts.allows("films.example", 8443, usual=False)
        assert hosts.allows("pacs.lan", 8042, usual=False)
        assert not hosts.allows("pacs.lan", 80, usual=True)
        assert not hosts.allows("a.films.example", 443, usual=True)

    def test_private_addresses_need_an_entry(self):
        assert ImageHosts().reaches("93.184.215.14")
        assert ImageHosts().reaches("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
        assert not ImageHosts().reaches("127.0.0.1")
        assert not ImageHosts().reaches("::ffff:10.0.0.1")
        assert ImageHosts.parse("[fd00::1]").reaches("fd00::1")
        assert not ImageHosts.parse("[fd00::1]").reaches("fd00::2")


class TestShownAddress:
    @pytest.mark.parametrize(
        ("uri", "shown"),
        [
            ("https://b.example/a.png?X-Amz-Signature=f00&X=1#x", "https://b.example/a.png?..."),
            ("https://me:pw@b.example:8042/a.png", "https://b.example:8042/a.png"),
            ("http://ls/data/local-files/?d=pool/x 1.png&token=f00", "http://ls/data/local-files/?d=pool/x+1.png"),
            ("/data/upload/1/a.png", "/data/upload/1/a.png"),
            ("s3://bucket/a.png", "s3://bucket/a.png"),
            ("data:image/png;base64,AAAA", "data:image/png;base64,..."),
            ("http://me:pw@[::1/a?b=f00", "[::1/a"),
        ],
    )
    def test_without_what_lets_its_reader_in(self, uri, shown):
        assert shown_address(uri) == shown

    @given(st.text())
    def test_any_text_is_shown_short(self, uri):
        assert len(shown_address(uri)) <= 250


@pytest.mark.parametrize(("user", "trusted"), [("al", "http://told"), (None, None)])
def test_an_address_from_setup_gets_the_key_only_where_a_password_is_asked_for(user, trusted):
    """Without one, anybody may call ``/setup``."""
    settings = Settings(basic_auth_user=user, basic_auth_pass=user and "secret")

    assert settings.trusted_hostname("http://told") == trusted
    assert settings.trusted_hostname(None) is None
