"""Where a config's state lies, which store is used further, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tierfall import state
from tierfall.bus import BusOptions
from tierfall.cli.up import state as up_state
from tierfall.config import Nats, load
from tierfall.errors import ConfigError

CONFIG = """
tiers: {one: {worker: ollama, base_url: 'http://127.0.0.1:1'}}
models: {first: {tier: one, backend_model: tiny}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file; the current folder is another one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = tmp_path / "project" / "home.yaml"
    path.parent.mkdir()
    path.write_text(CONFIG)
    return path


def environ(config: Path) -> dict[str, str]:
    """With a state folder beside all else."""
    return {"XDG_STATE_HOME": str(config.parent.parent / "state")}


def old_store(folder: Path) -> Path:
    """What an earlier version left."""
    store = folder / ".tierfall" / "jetstream"
    store.mkdir(parents=True)
    return store


def test_it_follows_from_the_file_and_the_user(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the current folder, nor from how the file is named on the command line."""
    found = state.folder(config, environ(config))
    assert found.parent == config.parent.parent / "state" / "tierfall"
    assert found.name.startswith("home-")
    link = Path("link.yaml")
    link.symlink_to(config)
    assert state.folder(link, environ(config)) == found
    assert state.folder(Path("../project/home.yaml"), environ(config)) == found
    monkeypatch.chdir(config.parent)
    assert state.folder(Path("home.yaml"), environ(config)) == found
    other = config.with_name("other.yaml")
    assert state.folder(other, environ(config)) != found
    assert state.folder(config, {"XDG_STATE_HOME": "relative", "HOME": "/home/ann"}) == Path(
        f"/home/ann/.local/state/tierfall/{found.name}"
    )


def test_all_that_read_the_config_know_where_the_token_is(config: Path) -> None:
    """A token or a file that the config names itself comes first."""
    found = state.folder(config, environ(config)) / state.TOKEN_NAME
    nats = load(config, environ(config), for_worker=True).nats
    assert BusOptions.of(nats, "test", 1.0).token_file == str(found)
    for written, token_file in (
        ("nats: {token: t}", ""),
        ("nats: {token_file: /run/token}", "/run/token"),
        ("nats: {url: 'nats://h:1'}", ""),
    ):
        config.write_text(f"{written}\n{CONFIG}")
        assert load(config, environ(config)).nats.token_file == token_file


def test_the_token_is_new_at_each_start(config: Path, tmp_path: Path) -> None:
    """Unless the config has one; a file that it names and that is empty is refused."""
    home = state.folder(config, environ(config))
    up_state.make(home, None, config)
    nats = load(config, environ(config)).nats
    first = up_state.token_of(nats, home)
    assert Path(nats.token_file).read_text().strip() == first
    assert up_state.token_of(nats, home) != first
    own = tmp_path / "token"
    own.write_text("of my own\n")
    assert up_state.token_of(Nats(token_file=str(own)), home) == "of my own"
    own.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        up_state.token_of(Nats(token_file=str(own)), home)


def test_a_folder_of_others_is_refused(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can write there could put client keys of their own into the store."""
    home = state.folder(config, environ(config))
    for place in (tmp_path / "open", tmp_path / "closed" / "jetstream"):
        place.mkdir(parents=True)
        place.chmod(0o777)
    for chosen in (tmp_path / "open", tmp_path / "closed"):
        with pytest.raises(ConfigError, match="every user may write to"):
            up_state.make(home, chosen, config)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        up_state.make(home, None, config)


@pytest.mark.parametrize("beside", [True, False])
def test_the_store_of_an_earlier_version_is_used_further(
    config: Path, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever folder it is started later. One that is gone is not replaced by an empty one."""
    home = state.folder(config, environ(config))
    store = old_store(config.parent if beside else Path.cwd())
    place, said = up_state.make(home, None, config)
    assert place == home
    assert (home / "jetstream").resolve() == store
    assert len(said) == 1
    assert str(store) in said[0]
    monkeypatch.chdir("/")
    assert up_state.make(home, None, config)[1] == said
    store.rename(store.with_name("gone"))
    with pytest.raises(ConfigError, match="is gone: put it back"):
        up_state.make(home, None, config)


def test_the_store_of_others_is_left_alone(config: Path) -> None:
    """A folder such as /tmp may hold one that another user has put there."""
    store = old_store(Path.cwd())
    store.parent.chmod(0o777)
    home = state.folder(config, environ(config))
    _, said = up_state.make(home, None, config)
    assert "is left alone: every user may write to" in said[0]
    assert not (home / "jetstream").exists()


def test_a_store_of_its_own_comes_before_an_old_one(config: Path) -> None:
    """Nothing is adopted once there is something to lose."""
    home = state.folder(config, environ(config))
    (home / "jetstream").mkdir(parents=True)
    old_store(Path.cwd())
    assert up_state.make(home, None, config) == (home, [])
    assert not (home / "jetstream").is_symlink()


def test_one_store_has_one_user(config: Path, tmp_path: Path) -> None:
    """Also when two configs go on with the same store of an earlier version."""
    old_store(Path.cwd())
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG)
    homes = [state.folder(path, environ(config)) for path in (config, other)]
    for home in homes:
        up_state.make(home, None, config)
    up_state.lock(homes[0])
    with pytest.raises(ConfigError, match="another `tierfall up` uses"):
        up_state.lock(homes[1])
    alone = tmp_path / "alone"
    up_state.make(homes[0], alone, config)
    up_state.lock(alone)
