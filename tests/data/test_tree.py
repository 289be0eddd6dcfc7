"""Folders, archives and remote storage read alike, and say what is wrong with them."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from regvq_jax.data import archives, tree
from regvq_jax.errors import UserError

FILES = {"a.txt": b"alpha", "inner/b.bin": bytes(range(256)) * 40, "inner/deep/ü.txt": "ö".encode()}
HIDDEN = {".hidden": b"x", "inner/.also/c": b"x", "__MACOSX/a.txt": b"x"}


def write_folder(path):
    for name, content in (FILES | HIDDEN).items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return str(path)


def write_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("inner")
        for name, content in (FILES | HIDDEN).items():
            archive.writestr(name, content)
    return str(path)


def write_tar(path, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in (FILES | HIDDEN).items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture
def remote():
    memory = fsspec.filesystem("memory")
    for name, content in (FILES | HIDDEN).items():
        memory.pipe_file(f"/bucket/data/{name}", content)
    yield "memory://bucket/data"
    memory.rm("/bucket", recursive=True)


def open_kind(kind, tmp_path, remote):
    if kind == "remote":
        return tree.open_tree(remote)
    write = {"folder": write_folder, "zip": write_zip, "tar": write_tar}
    if kind.startswith("remote "):
        name = f"x.{kind.removeprefix('remote ')}"
        written = write[name[2:]](tmp_path / name)
        fsspec.filesystem("memory").put_file(written, f"/bucket/{name}")
        return tree.open_tree(f"memory://bucket/{name}")
    if kind == "tgz":
        return tree.open_tree(write_tar(tmp_path / "x.tgz", "w:gz"), tmp_path / "scratch")
    return tree.open_tree(write[kind](tmp_path / f"x.{kind}"))


KINDS = ("folder", "zip", "tar", "tgz", "remote", "remote zip", "remote tar")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_files(kind, tmp_path, remote):
    opened = open_kind(kind, tmp_path, remote)
    assert opened.files() == sorted(tree.File(name, len(content)) for name, content in FILES.items())
    again = pickle.loads(pickle.dumps(opened))
    for each in (opened, again):
        assert {file.path: each.read(file.path) for file in each.files()} == FILES
        with each.open("inner/b.bin") as file:
            file.seek(300)
            assert file.read(5) == FILES["inner/b.bin"][300:305]
        with pytest.raises(OSError):
            each.read("inner/none")
    with ThreadPoolExecutor(8) as pool:
        names = [name for name in FILES for _ in range(20)]
        assert list(pool.map(opened.read, names)) == [FILES[name] for name in names]


def test_folders_and_archives_are_joined(tmp_path):
    write_zip(tmp_path / "x.zip")
    (tmp_path / "own.txt").write_bytes(b"own")
    joined = tree.open_trees([tmp_path])
    assert {"a.txt", "own.txt", "x.zip"} <= {file.path for file in joined.files()}
    assert joined.read("a.txt") == b"alpha" and joined.read("own.txt") == b"own"
    write_tar(tmp_path / "y.tar")
    with pytest.raises(UserError, match="Both .*x.zip and .*y.tar have a.txt"):
        tree.open_trees([tmp_path])


@pytest.mark.parametrize("share", (0.3, 0.6, 0.95))
@pytest.mark.parametrize("kind", ("zip", "tar", "tgz"))
def test_a_cut_off_archive_is_named(kind, share, tmp_path):
    write = {"zip": write_zip, "tar": write_tar, "tgz": lambda p: write_tar(p, "w:gz")}[kind]
    path = tmp_path / f"x.{kind}"
    whole = open(write(path), "rb").read()
    if kind == "tar":  # Its end is padding.
        whole = whole[: whole.rindex("ö".encode()) + 100]
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"x\.\w+ .*(cut off|damaged)"):
        tree.open_tree(path, tmp_path / "scratch")


def test_a_tar_cut_off_between_two_files_is_named(tmp_path):
    path = tmp_path / "x.tar"
    whole = open(write_tar(path), "rb").read()
    offset = {name: start for name, start, _ in archives.tar_index(str(path))}["./inner/b.bin"]
    path.write_bytes(whole[: offset - 512])
    with pytest.raises(UserError, match="cut off after ./a.txt"):
        tree.open_tree(path)


def test_a_damaged_file_in_a_zip_is_an_oserror(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"alpha" * 100)
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        tree.open_tree(path).read("a.txt")


def test_a_file_twice_and_a_giant_one(tmp_path, monkeypatch):
    path = tmp_path / "x.zip"
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"1")
        archive.writestr("a.txt", b"2")
    with pytest.raises(UserError, match="has a.txt twice"):
        tree.open_tree(path)
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 100)
    with pytest.raises(OSError, match="claims to have"):
        tree.open_tree(write_zip(tmp_path / "y.zip")).read("inner/b.bin")


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist or is no folder"):
        tree.open_tree(tmp_path / "none")
    with pytest.raises(UserError, match="Archive .* does not exist"):
        tree.open_tree(tmp_path / "none.zip")
    with pytest.raises(UserError, match="no storage that fsspec knows"):
        tree.open_tree("nonsense://bucket/data")
    (tmp_path / "x.tgz").write_bytes(gzip.compress(b"no tar at all, but longer than nothing"))
    with pytest.raises(UserError, match="unzip it"):
        tree.open_tree(tmp_path / "x.tgz")
    with pytest.raises(UserError, match="no tar file"):
        tree.open_tree(tmp_path / "x.tgz", tmp_path / "scratch")


def zip_outside(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside.txt", b"x")


def tar_outside(path):
    with tarfile.open(path, "w") as archive:
        for name in ("../../outside.txt", str(path.parent.parent.parent / "outside.txt")):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))


@pytest.mark.parametrize("name, write", [("x.zip", zip_outside), ("x.tar", tar_outside)])
def test_names_in_archives_lead_nowhere(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    opened = tree.open_tree(path)
    for file in opened.files():
        assert opened.read(file.path) == b"x"  # Where it lies, in the archive.
    assert not os.path.exists(tmp_path.parent.parent / "outside.txt")


def test_links_in_an_archive_are_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    assert tree.open_tree(tmp_path / "x.tar").files() == []


def test_links_are_followed_once(tmp_path):
    write_folder(tmp_path / "data")
    os.symlink(tmp_path / "data", tmp_path / "data" / "inner" / "loop")
    assert len(tree.open_tree(tmp_path / "data").files()) == len(FILES)
