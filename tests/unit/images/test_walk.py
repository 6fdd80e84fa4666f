"""Which files an import finds, and what it refuses to read."""

import io
import os
import stat
import struct
import tempfile
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from fsspec.implementations.http import HTTPFileSystem

from ml_backend.errors import ImageError, SettingsError
from ml_backend.images.files import RefusedFile, SourceFile, walk


def found(source: Path | str, **options: int) -> dict[str, bytes | str]:
    """Name -> content, or the reason of a refusal, in order."""
    seen: dict[str, bytes | str] = {}
    for one in walk(str(source), **options):
        try:
            seen[one.name] = one.reason if isinstance(one, RefusedFile) else one.read()
        except ImageError as error:
            seen[one.name] = f"{error.kind}: {error}"
    return seen


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class TestFolder:
    def test_files_of_any_depth_and_of_archives_in_the_order_of_their_names(self, tmp_path):
        for name in ("a/2.png", "a/b/c/1.png", "a.png", "z.dcm", "z"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(name.encode())
        packed(tmp_path / "m.ZIP", {"y/2": b"2", "x": b"1"})

        seen = found(tmp_path)

        assert list(seen) == ["a.png", "a/2.png", "a/b/c/1.png", "m.ZIP/x", "m.ZIP/y/2", "z", "z.dcm"]
        assert seen["a/b/c/1.png"] == b"a/b/c/1.png"
        assert seen["m.ZIP/y/2"] == b"2"

    def test_links_are_followed_inside_the_folder_only(self, tmp_path):
        (tmp_path / "out").write_bytes(b"secret")
        root = tmp_path / "in"
        (root / "folder").mkdir(parents=True)
        (root / "folder" / "image").write_bytes(b"1")
        (root / "good").symlink_to("folder/image")
        (root / "bad").symlink_to("../out")
        (root / "bad.zip").symlink_to(packed(tmp_path / "z", {"x": b"secret"}))
        (root / "again").symlink_to("folder")
        (root / "loop").symlink_to("loop")
        (root / "nowhere").symlink_to("nothing")

        seen = found(root)

        assert {name for name, content in seen.items() if content == b"1"} == {"folder/image", "good"}
        assert set(seen) == {"folder/image", "good", "bad", "bad.zip", "again", "loop", "nowhere"}
        assert "leads out of the folder" in str(seen["bad"])
        assert "leads out of the folder" in str(seen["bad.zip"])

    def test_a_file_that_becomes_a_link_is_not_followed(self, tmp_path):
        root = tmp_path / "in"
        root.mkdir()
        (root / "image").write_bytes(b"1")
        [file] = walk(str(root))
        (root / "image").unlink()
        (root / "image").symlink_to(tmp_path)

        assert isinstance(file, SourceFile)
        with pytest.raises(ImageError, match="leads out"):
            file.read()

    def test_what_must_not_or_cannot_be_read_is_named(self):
        with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
            root, user = Path(name), os.geteuid()
            root.chmod(0o755)
            os.mkfifo(root / "pipe")
            with (root / "huge.dcm").open("wb") as file:
                file.truncate(2 * 2**30)  # sparse: takes no room
            (root / os.fsdecode(b"latin-\xe4")).write_bytes(b"1")
            (root / "closed").mkdir(mode=0)
            (root / "shut.png").touch(mode=0)
            os.seteuid(user or 65534)  # root may read everything
            try:
                seen = found(root)
            finally:
                os.seteuid(user)

        assert seen == {
            "closed": "cannot be read: Permission denied",
            "huge.dcm": "too large: 2,147,483,648 bytes, at most 268,435,456 are read: compress it",
            "latin-�": b"1",
            "pipe": "a pipe, a socket, a device or a folder: give a file",
            "shut.png": f"forbidden: image shut.png: {root / 'shut.png'} cannot be read: Permission denied",
        }


class TestArchive:
    def test_tricks_are_named_and_the_rest_is_read(self, tmp_path):
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        path = packed(
            tmp_path / "x.zip",
            {
                "../up": b"1",
                "/root": b"1",
                "c:/dos": b"1",
                "..\\dos": b"1",
                "a.zip": b"1",
                "bomb": bytes(2**21),
                "ok": b"2",
            },
        )
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(link, "/etc/passwd")
            archive.writestr("large", os.urandom(3000))

        seen = found(path, max_bytes=2**22)
        few = found(path, max_bytes=2000)

        tricks = {f"x.zip/{name}" for name in ("../up", "/root", "c:/dos", "..\\dos")}
        assert {name for name, reason in seen.items() if "leads out" in str(reason)} == tricks
        assert "link in an archive" in str(seen["x.zip/link"])
        assert "archive inside an archive" in str(seen["x.zip/a.zip"])
        assert "bomb: " in str(seen["x.zip/bomb"])
        assert seen["x.zip/ok"] == few["x.zip/ok"] == b"2"
        assert "too large: 3,000 bytes" in str(few["x.zip/large"])

    def test_damage_and_passwords_are_named(self, tmp_path):
        whole = packed(tmp_path / "a.zip", {"1": b"1" * 500, "2": b"2" * 500}).read_bytes()
        body = bytearray(whole)
        body[34] ^= 0xFF  # in the data of the first member
        (tmp_path / "a.zip").write_bytes(body)
        (tmp_path / "b.zip").write_bytes(whole[:60])
        secret = bytearray(whole)
        place = secret.index(b"PK\x01\x02")
        struct.pack_into("<H", secret, place + 8, 1)  # the flag "encrypted" in the directory
        (tmp_path / "c.zip").write_bytes(secret)

        seen = found(tmp_path)

        assert str(seen["a.zip/1"]).startswith("damaged: a.zip/1 cannot be read")
        assert seen["a.zip/2"] == b"2" * 500
        assert "no ZIP archive" in str(seen["b.zip"])
        assert "with its password first" in str(seen["c.zip/1"])

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_members_that_would_be_unpacked_without_a_limit_are_refused(self, tmp_path, method):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("1", bytes(1000))

        assert found(tmp_path) == {"a.zip/1": "packed by another method than deflate: pack it again"}

    def test_a_member_that_says_less_than_it_unpacks_to_stays_bounded(self, tmp_path):
        body = bytearray(packed(tmp_path / "a.zip", {"1": os.urandom(100) * 100}).read_bytes())
        for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            struct.pack_into("<I", body, body.index(signature) + offset, 10)
        (tmp_path / "a.zip").write_bytes(body)

        content = found(tmp_path)["a.zip/1"]

        assert isinstance(content, str)
        assert content.startswith("damaged: ")


class TestTable:
    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_rows_with_their_columns_in_their_order(self, tmp_path, separator):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "2.png").write_bytes(b"2")
        (tmp_path / "1.png").write_bytes(b"1")
        rows = (
            ("path", "patient_id", "view"),
            ("in/2.png", "P 2", "PA"),
            (f"{tmp_path}/1.png", "", ""),
            ("no.png",),
            ("",),
        )
        (tmp_path / "t.csv").write_text("\ufeff" + "\n".join(separator.join(row) for row in rows))

        one, two, three = walk(str(tmp_path / "t.csv"))

        assert isinstance(one, SourceFile)
        assert isinstance(two, SourceFile)
        assert (one.name, one.read(), one.fields) == ("in/2.png", b"2", {"patient_id": "P 2", "view": "PA"})
        assert (two.read(), two.fields) == (b"1", {})
        assert three == RefusedFile("no.png", "cannot be read: No such file or directory")
        assert "P 2" not in repr(one)

    def test_another_encoding(self, tmp_path):
        (tmp_path / "t.csv").write_bytes(b"path,site\n" + b"a.png,x\n" * 2000 + b"b.png,K\xf6ln\n")

        with pytest.raises(SettingsError, match=r"t.csv, after line .*: save it as CSV UTF-8"):
            list(walk(str(tmp_path / "t.csv")))

    def test_emptied_while_it_is_read(self, tmp_path):
        (tmp_path / "t.csv").write_text("path\na.png\n")
        rows = walk(str(tmp_path / "t.csv"))
        (tmp_path / "t.csv").write_text("")

        assert list(rows) == []

    def test_without_paths(self, tmp_path):
        (tmp_path / "t.csv").write_text("file,label\n1.png,0\n")

        with pytest.raises(SettingsError, match="has the columns file, label: expected one called `path`"):
            walk(str(tmp_path / "t.csv"))


class TestAddress:
    def test_objects_and_archives_of_a_store(self, monkeypatch):
        import fsspec

        monkeypatch.setitem(walk.__globals__, "SCHEMES", ("memory",))
        store = fsspec.filesystem("memory")
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as members:
            members.writestr("x", b"3")
        for name, content in {
            "b/2.png": b"2",
            "a.png": b"1",
            "z.zip": archive.getvalue(),
            "large": bytes(2000),
        }.items():
            store.pipe(f"/walk/{name}", content)

        seen = {one.name: one for one in walk("memory://walk", max_bytes=1000)}

        assert list(seen) == ["a.png", "b/2.png", "large", "z.zip/x"]
        assert isinstance(seen["large"], RefusedFile)
        two = seen["b/2.png"]
        assert isinstance(two, SourceFile)
        assert (two.read(), two.size, two.address) == (b"2", 1, "memory:///walk/b/2.png")
        assert found("memory://walk")["z.zip/x"] == b"3"
        store.pipe("/walk/b/2.png", bytes(1001))
        with pytest.raises(ImageError, match="too large: 1,001 bytes"):
            two.read()
        store.rm("/walk", recursive=True)
        with pytest.raises(ImageError, match="no longer there"):
            two.read()

    def test_a_web_address_is_one_file_that_is_not_requested_before_it_is_read(self, monkeypatch):
        address = "https://127.0.0.1:9/a/x.png?sig=secret"
        monkeypatch.setattr(HTTPFileSystem, "open", Mock(side_effect=ValueError(f"403, url='{address}'")))

        [file] = walk(address)

        assert isinstance(file, SourceFile)
        assert (file.name, file.address) == ("x.png", address)
        with pytest.raises(ImageError, match=r"x.png cannot be read: .*/a/x.png\?\.\.\.$"):
            file.read()

    @pytest.mark.parametrize("scheme", ["file", "local", "http", "ftp", "memory", "simplecache::s3"])
    def test_other_schemes_are_refused_in_tables_too(self, tmp_path, scheme):
        (tmp_path / "secret").write_bytes(b"1")
        (tmp_path / "t.csv").write_text(f"path\n{scheme}://{tmp_path}/secret\ns3::file://{tmp_path}/secret\n")

        for one in walk(str(tmp_path / "t.csv")):
            assert isinstance(one, RefusedFile)
            assert ":// is none of s3, gs, gcs, az, abfs, https" in one.reason

    @pytest.mark.parametrize("source", ["nosuch://bucket/x", "/no/such/folder"])
    def test_what_cannot_be_listed(self, source):
        with pytest.raises(SettingsError, match=source):
            walk(source)
