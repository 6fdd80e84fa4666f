"""How much code runs between a reader's answer and the order that it changes."""

from tests.count_modules import ALLOWED, count_modules


def test_few_modules_run_between_an_event_and_the_published_order(redis, valkey_url, tmp_path, say):
    found = count_modules(tmp_path, valkey_url)

    say(f"between an event and the published order run {len(found)} modules")
    assert len(found) <= ALLOWED, found
    assert {"server.webhook", "scheduling.policy", "rounds.run", "label_studio.publisher"} <= set(found)
