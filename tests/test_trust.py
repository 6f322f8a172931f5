"""Code is run only from named folders, or from files that nobody else could have written."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve.errors import BadInputError, NotTrustedError
from segserve.models.trust import refuse_untrusted_beside, trusted_file

NOBODY = pwd.getpwnam("nobody")
UNKNOWN_GROUP = 54321
NOT_NAMED = 2**32 - 1
UNLISTED = [
    group
    for group in grp.getgrall()
    if group.gr_gid and not group.gr_mem and not [user for user in pwd.getpwall() if user.pw_gid == group.gr_gid]
]
PRIVATE = [
    user
    for user in pwd.getpwall()
    if user.pw_uid
    and not [one for one in pwd.getpwall() if one.pw_gid == user.pw_gid and one.pw_uid != user.pw_uid]
    and [one for one in grp.getgrall() if (one.gr_gid, one.gr_name, one.gr_mem) == (user.pw_gid, user.pw_name, [])]
]
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


def judge(path: Path, trusted: Sequence[Path], beside: Sequence[Path] = ()) -> None:
    refuse_untrusted_beside(path, trusted_file(path, trusted), trusted, beside)


def refusal(path: Path, *, trusted: tuple[Path, ...] = (), beside: tuple[Path, ...] = ()) -> str:
    with pytest.raises(NotTrustedError) as caught:
        judge(path, trusted, beside)
    assert caught.value.status == 403
    assert caught.value.message.endswith(".")
    return caught.value.message


def test_a_file_of_ours_in_folders_of_ours_is_trusted(config: Path) -> None:
    judge(config, [])


def test_a_file_writable_by_others_is_refused_with_reason_and_remedy(config: Path) -> None:
    config.chmod(0o646)
    message = refusal(config)
    assert f"{config} holds code and is not run: it may be changed by every user." in message
    assert f"--trust {config.parent}" in message
    assert "chmod go-w" in message


def test_the_remedies_work(config: Path) -> None:
    config.chmod(0o666)
    judge(config, [config.parent])
    judge(config, [config.parents[1]])
    config.chmod(0o644)
    judge(config, [])


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_above_that_others_may_change_is_refused_by_its_name(config: Path, level: int) -> None:
    folder = config.parents[level]
    folder.chmod(0o777)
    assert f"the folder {folder} may be changed by every user" in refusal(config)


def test_a_sticky_folder_is_no_offence(config: Path) -> None:
    config.parent.chmod(0o1777)
    judge(config, [])


def test_a_sticky_file_is_one(config: Path) -> None:
    config.chmod(0o1666)
    assert "it may be changed by every user" in refusal(config)


@as_root
def test_a_file_of_another_user_is_refused(config: Path) -> None:
    os.chown(config, NOBODY.pw_uid, -1)
    message = refusal(config)
    assert "it belongs to nobody, not to root." in message
    assert "run chown root on it" in message
    judge(config, [config.parent])


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
    judge(config, [])


@as_root
@pytest.mark.skipif(not UNLISTED, reason="every group has a known member")
def test_a_group_whose_members_cannot_be_told_may_not_write(config: Path) -> None:
    os.chown(config, -1, UNLISTED[0].gr_gid)
    config.chmod(0o664)
    assert f"it may be changed by the group {UNLISTED[0].gr_name}." in refusal(config)


@as_root
@pytest.mark.skipif(not PRIVATE, reason="no user has a group of its own")
def test_the_group_of_the_servers_user_alone_may_write(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = PRIVATE[0]
    monkeypatch.setattr(os, "geteuid", lambda: user.pw_uid)
    os.chown(config, -1, user.pw_gid)
    config.chmod(0o664)
    judge(config, [])
    shared = grp.struct_group((user.pw_name, "x", user.pw_gid, ["somebody"]))
    monkeypatch.setattr(grp, "getgrgid", lambda _: shared)
    assert f"it may be changed by the group {user.pw_name}." in refusal(config)


def access_list(user: int) -> bytes:
    """What `setfacl -m u:USER:rw` makes of a file of mode 644, as Linux keeps it."""
    entries = [(1, 6, NOT_NAMED), (2, 6, user), (4, 4, NOT_NAMED), (16, 6, NOT_NAMED), (32, 4, NOT_NAMED)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="Linux keeps them there")
def test_a_file_that_its_access_list_lets_others_change_is_refused(config: Path) -> None:
    try:
        os.setxattr(config, "system.posix_acl_access", access_list(NOBODY.pw_uid))
    except OSError:
        pytest.skip("this disk keeps no access lists")
    assert "it may be changed by others whom its access list names. " in refusal(config)
    config.chmod(0o644)  # the remedy: it takes the list's permissions too
    judge(config, [])


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
    judge(link, [config.parent])


def test_a_trusted_folder_may_be_named_through_a_link(config: Path, tmp_path: Path) -> None:
    config.chmod(0o666)
    (tmp_path / "link").symlink_to(config.parent)
    judge(config, [tmp_path / "link"])


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


def test_what_a_link_led_to_when_it_was_judged_is_what_is_run(config: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(config)
    assert trusted_file(link, []) == config


def test_a_link_to_a_module_is_judged_by_where_it_lies_too(config: Path) -> None:
    module, others = config.with_name("good.py"), config.parent / "others"
    module.write_text("")
    module.chmod(0o644)
    others.mkdir()
    (config.parent / "over").symlink_to(others)
    (others / "net.py").symlink_to(module)
    judge(config, [], [config.parent / "over" / "net.py"])
    others.chmod(0o777)
    message = refusal(config, beside=(config.parent / "over" / "net.py",))
    assert message.startswith("over/net.py holds code and is not run: its folder may be changed by every user.")
    judge(config, [config.parent], [config.parent / "over" / "net.py"])


@as_root
def test_anothers_link_in_a_sticky_folder_is_not_followed_to_a_module(config: Path, tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "net.py").symlink_to(config)
    os.chown(sticky / "net.py", NOBODY.pw_uid, -1, follow_symlinks=False)
    assert "net.py holds code and is not run: it belongs to nobody" in refusal(config, beside=(sticky / "net.py",))


@pytest.mark.parametrize("lost", ["gone", "round and round"])
def test_a_link_that_leads_nowhere_is_a_sentence(tmp_path: Path, lost: str) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(tmp_path / lost if lost == "gone" else link)
    with pytest.raises(BadInputError, match=r"link\.py cannot be read: .*\.$"):
        trusted_file(link, [])


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
        judge(path, [])
