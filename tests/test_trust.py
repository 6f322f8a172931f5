"""Code is run only from named folders, or from files that nobody else could have written."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve.errors import NotTrustedError
from segserve.models.trust import refuse_untrusted

NOBODY = pwd.getpwnam("nobody")
UNKNOWN_GROUP = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "shared" / "models"
    folder.mkdir(parents=True)
    path = folder / "config.py"
    path.write_text("x = 1\n")
    for place in (path, folder, folder.parent):
        place.chmod(0o755 if place.is_dir() else 0o644)
    return path


def refusal(path: Path, *, trusted: tuple[Path, ...] = (), beside: tuple[Path, ...] = ()) -> str:
    with pytest.raises(NotTrustedError) as caught:
        refuse_untrusted(path, trusted, beside)
    assert caught.value.status == 403
    assert caught.value.message.endswith(".")
    return caught.value.message


def test_a_file_of_ours_in_folders_of_ours_is_trusted(config: Path) -> None:
    refuse_untrusted(config, [])


def test_a_file_writable_by_others_is_refused_with_reason_and_remedy(config: Path) -> None:
    config.chmod(0o646)
    message = refusal(config)
    assert f"{config} holds code and is not run: it may be changed by every user." in message
    assert f"--trust {config.parent}" in message
    assert "chmod go-w" in message


def test_the_remedies_work(config: Path) -> None:
    config.chmod(0o666)
    refuse_untrusted(config, [config.parent])
    refuse_untrusted(config, [config.parents[1]])
    config.chmod(0o644)
    refuse_untrusted(config, [])


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_above_that_others_may_change_is_refused_by_its_name(config: Path, level: int) -> None:
    folder = config.parents[level]
    folder.chmod(0o777)
    assert f"the folder {folder} may be changed by every user" in refusal(config)


def test_a_sticky_folder_is_no_offence(config: Path) -> None:
    config.parent.chmod(0o1777)
    refuse_untrusted(config, [])


def test_a_sticky_file_is_one(config: Path) -> None:
    config.chmod(0o1666)
    assert "it may be changed by every user" in refusal(config)


@as_root
def test_a_file_of_another_user_is_refused(config: Path) -> None:
    os.chown(config, NOBODY.pw_uid, -1)
    message = refusal(config)
    assert "it belongs to nobody, not to root." in message
    assert "run chown root on it" in message
    refuse_untrusted(config, [config.parent])


@as_root
def test_a_file_of_an_unknown_user_is_refused(config: Path) -> None:
    os.chown(config, 54321, -1)
    assert "it belongs to the user with id 54321" in refusal(config)


@as_root
def test_a_folder_of_another_user_is_refused_even_if_sticky(config: Path) -> None:
    config.parent.chmod(0o1755)
    os.chown(config.parent, NOBODY.pw_uid, -1)
    assert f"the folder {config.parent} belongs to nobody" in refusal(config)


@as_root
@pytest.mark.parametrize(("group", "named"), [(NOBODY.pw_gid, "the group no"), (UNKNOWN_GROUP, "with id 54321")])
def test_a_group_with_other_members_may_not_write(config: Path, group: int, named: str) -> None:
    os.chown(config, -1, group)
    config.chmod(0o664)
    message = refusal(config)
    assert "it may be changed by the group" in message
    assert named in message
    assert "chmod g-w" in message


@as_root
@pytest.mark.skipif(any(user.pw_gid == 0 and user.pw_uid for user in pwd.getpwall()), reason="root's group is shared")
def test_a_group_of_our_own_may(config: Path) -> None:
    os.chown(config, -1, 0)
    config.chmod(0o664)
    refuse_untrusted(config, [])


def test_a_link_is_judged_by_where_it_leads_which_is_not_told(config: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(config)
    config.parent.chmod(0o777)
    message = refusal(link)
    assert f"{link} holds code and is not run: its folder may be changed by every user" in message
    assert str(config.parent) not in message
    config.parent.chmod(0o755)
    config.parents[1].chmod(0o777)
    assert "the folder 2 levels above it may be changed" in refusal(link)


def test_a_link_out_of_a_trusted_folder_is_not_in_it(config: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    link = trusted / "link.py"
    link.symlink_to(config)
    config.chmod(0o666)
    refusal(link, trusted=(trusted,))
    refuse_untrusted(link, [config.parent])


def test_a_trusted_folder_may_be_named_through_a_link(config: Path, tmp_path: Path) -> None:
    config.chmod(0o666)
    (tmp_path / "link").symlink_to(config.parent)
    refuse_untrusted(config, [tmp_path / "link"])


def test_a_folder_whose_name_begins_like_a_trusted_one_is_not_in_it(config: Path) -> None:
    config.chmod(0o666)
    refusal(config, trusted=(config.parent.with_name("mod"), config.parents[1] / "models" / "config"))


def test_modules_beside_count_and_are_named_below_the_config_only(config: Path, tmp_path: Path) -> None:
    inside, outside = config.parent / "nets" / "net.py", tmp_path / "base.py"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_text("")
        path.chmod(0o666)
    assert refusal(config, beside=(inside,)).startswith("nets/net.py holds code and is not run: it may be changed")
    message = refusal(config, beside=(outside,))
    assert message.startswith("base.py holds code")
    assert str(tmp_path) not in message.replace(str(config.parent), "")


@given(modes=st.lists(st.sampled_from([0o755, 0o700, 0o757, 0o1757, 0o1777, 0o1755]), min_size=3, max_size=3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_is_refused_exactly_if_somebody_else_can_replace_something_on_its_way(
    tmp_path_factory: pytest.TempPathFactory, modes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("way")
    for number, mode in enumerate(modes):
        folder /= str(number)
        folder.mkdir()
        folder.chmod(mode)
    path = folder / "config.py"
    path.write_text("")
    path.chmod(0o644)
    if any(mode & stat.S_IWOTH and not mode & stat.S_ISVTX for mode in modes):
        refusal(path)
    else:
        refuse_untrusted(path, [])
