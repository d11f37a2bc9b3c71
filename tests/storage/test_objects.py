import pytest

from storage.errors import IntegrityError, MissingObject, UserError
from storage.objects import LocalStore, exists, local_path, open_store, store_exists

HOSTILE_KEYS = ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a/./b", "a//b", "a/", ".hidden", "a/.tmp-1", "a\\b",
                "a b", "a\nb", "a\x00b", "ä", "~", "a/~", "$HOME", "a;b", "s3://x/y", "a" * 201,
                "a/" * 450 + "a", "-rf"]


def test_an_object_is_put_once_and_never_overwritten(store, tmp_path):
    (tmp_path / "file").write_bytes(b"from a file")
    assert store.put_if_absent("a/b", b"first") is True
    assert store.put_if_absent("a/b", b"second") is False
    assert store.put_if_absent("a/c", tmp_path / "file") is True
    assert (store.get("a/b"), store.get("a/c")) == (b"first", b"from a file")


def test_listing_goes_by_prefix_and_leaves_temp_files_out(store):
    for key in ("run=a/x", "run=a/y/z", "run=ab/x", "top"):
        store.put_if_absent(key, key.encode())
    (store.root / "run=a" / ".tmp-1").write_bytes(b"half")
    assert [info.key for info in store.list("run=a/")] == ["run=a/x", "run=a/y/z"]
    assert [info.key for info in store.list("run=a")] == ["run=a/x", "run=a/y/z", "run=ab/x"]
    assert {info.key: info.size for info in store.list()}["top"] == 3
    assert list(store.list("nothing/here")) == [] and all(info.modified > 1e9 for info in store.list())
    assert store.folders() == ["run=a", "run=ab"] and store.folders("run=a/") == ["y"]
    assert store.folders("nothing/") == []


def test_deleting_is_done_once_or_twice_alike(store):
    store.put_if_absent("a", b"")
    store.delete("a")
    store.delete("a")
    with pytest.raises(MissingObject, match="no object a in the store"):
        store.get("a")


def test_an_object_is_there_or_is_not_and_has_a_local_path(store):
    store.put_if_absent("a/b/c", b"1")
    assert local_path(store, "a/b/c").read_bytes() == b"1"
    assert exists(store, "a/b/c") and not any(exists(store, key) for key in ("a/b", "a/b/c.d", "x"))
    with pytest.raises(MissingObject):
        local_path(store, "a/x")


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_keys_that_are_not_clean_are_refused(store, key):
    for act in (lambda: store.put_if_absent(key, b""), lambda: store.get(key), lambda: store.delete(key),
                lambda: store.local_path(key)):
        with pytest.raises(IntegrityError, match="is not clean"):
            act()


def test_nothing_goes_through_symbolic_links(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"x")
    (store.root / "linked").symlink_to(outside)
    (store.root / "file").symlink_to(outside / "secret")
    for act in (lambda: store.put_if_absent("linked/new", b""), lambda: store.get("linked/secret"),
                lambda: store.get("file"), lambda: store.put_if_absent("file", b""),
                lambda: store.delete("linked/secret"), lambda: store.local_path("file")):
        with pytest.raises(IntegrityError, match="is a symbolic link"):
            act()
    assert [info.key for info in store.list()] == ["store.json"] and store.folders() == []
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_a_store_may_itself_lie_behind_a_link(store, tmp_path):
    (tmp_path / "alias").symlink_to(store.root)
    open_store(tmp_path / "alias").put_if_absent("a", b"1")
    assert store.get("a") == b"1"


# --- opening ---


def test_a_store_is_made_where_there_is_nothing_and_found_again(tmp_path):
    assert not store_exists(tmp_path / "new" / "s")
    made = open_store(tmp_path / "new" / "s", create=True)
    assert open_store(str(tmp_path / "new" / "s")).url == open_store(made.url, create=True).url == made.url
    assert store_exists(made.url)


def test_making_a_store_that_was_interrupted_is_completed(tmp_path):
    (tmp_path / ".tmp-0123").write_bytes(b"half a marker")
    assert isinstance(open_store(tmp_path, create=True), LocalStore)


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_that_holds_something_else_is_no_store_and_stays_as_it_is(tmp_path, create):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not a store"):
        open_store(tmp_path, create=create)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"] and not store_exists(tmp_path)


def test_places_that_cannot_be_stores_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for url, message in ((tmp_path / "file", "is a file"), (tmp_path / "absent", "does not exist"),
                         ("gs://bucket/x", "of a kind that is not known"), ("file:///tmp", "of a kind")):
        with pytest.raises(UserError, match=message) as error:
            open_store(url)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "absent").exists()


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    from storage import documents
    (tmp_path / "store.json").write_bytes(documents.seal({"kind": "store", "format": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 1"):
        open_store(tmp_path)
