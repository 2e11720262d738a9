"""Tokenizer folders from strangers: links that lead elsewhere, and damaged JSON."""

import json
import shutil

import pytest

from metamorph_jax.data.tokenizer import add_image_tokens, copy_tokenizer, load_tokenizer
from metamorph_jax.errors import UserError
from tests.data_files import small_tokenizer
from tests.golden_data import LLAVA

FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def write_config(folder, **fields):
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_relative", [False, True])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name, is_relative):
    secret = tmp_path / "secret"
    # As good a tokenizer file as any, so that nothing but the link is wrong.
    secret.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret" if is_relative else secret)
    for use in (load_tokenizer, lambda source: copy_tokenizer(source, tmp_path / "copy")):
        with pytest.raises(UserError, match=r"is a link to .*/secret, outside of its folder"):
            use(folder)
    assert not (tmp_path / "copy").exists()


def test_a_link_over_another_link_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "harmless").symlink_to(tmp_path)
    (folder / "chat_template.jinja").symlink_to("harmless/secret")
    with pytest.raises(UserError, match="outside of its folder"):
        load_tokenizer(folder)


def test_links_inside_a_folder_and_of_the_cache_are_followed(original, tmp_path):
    expected = load_tokenizer(original)
    cache = tmp_path / "hub" / "models--a--b"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(original.iterdir())):
        shutil.copy(file, cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "template").write_text("{{ messages }}")
    (snapshot / "chat_template.jinja").symlink_to("template")
    (tmp_path / "name_of_mine").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "name_of_mine"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.names == expected.names
        assert tokenizer.chat_template == "{{ messages }}"
    copy_tokenizer(snapshot, tmp_path / "copy")
    assert not any(file.is_symlink() for file in (tmp_path / "copy").iterdir())


def test_the_cache_of_another_place_is_no_cache(folder, tmp_path):
    """A stranger's folder may bring its own `snapshots` and a `blobs` that is a link itself."""
    snapshot = shutil.copytree(folder, tmp_path / "theirs" / "snapshots" / "1")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("secret")
    (tmp_path / "theirs" / "blobs").symlink_to(tmp_path / "etc")
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/passwd")
    with pytest.raises(UserError, match="etc/passwd, outside of its folder"):
        load_tokenizer(snapshot)


def test_a_link_to_itself_is_no_file(folder):
    (folder / "chat_template.jinja").symlink_to("chat_template.jinja")
    assert load_tokenizer(folder).chat_template is None


def test_the_map_of_special_tokens_is_read_and_written_again(folder, tmp_path):
    content = json.loads((folder / "special_tokens_map.json").read_text())
    copy_tokenizer(folder, tmp_path / "copy")
    copied = tmp_path / "copy" / "special_tokens_map.json"
    assert json.loads(copied.read_text()) == content
    (folder / "special_tokens_map.json").write_text("root:x:0:0")
    with pytest.raises(UserError, match=r"special_tokens_map\.json: not JSON"):
        copy_tokenizer(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "template",
    [
        *(3, {"default": "x"}, [3], ["x"], [{"name": "default"}], [{"template": "x"}]),
        *([{"name": ["default"], "template": "x"}], [{"name": "default", "template": 3}]),
    ],
)
def test_a_malformed_chat_template(folder, template):
    write_config(folder, chat_template=template)
    with pytest.raises(UserError, match=r'tokenizer_config\.json: "chat_template" should be'):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("x", "x"),
        ([], None),
        ([{"name": "default", "template": "x"}, {"name": "rag", "template": "y"}], "x"),
        ([{"name": "rag", "template": "y"}], None),
    ],
)
def test_chat_templates(folder, template, expected):
    write_config(folder, chat_template=template)
    assert load_tokenizer(folder).chat_template == expected


@pytest.mark.parametrize("role", [3, ["<s>"], {}, {"content": 3}])
def test_a_role_that_is_no_token(folder, role):
    write_config(folder, bos_token=role)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: bos_token should be a string"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "listed", [None, [], {"a": {"content": "x"}}, {"1": "x"}, {"1": {}}, {"9" * 5000: {}}]
)
def test_malformed_lists_of_added_tokens(folder, tmp_path, listed):
    write_config(folder, added_tokens_decoder=listed)
    with pytest.raises(UserError, match=r'config\.json: "added_tokens_decoder" should be like'):
        add_image_tokens(folder, tmp_path / "new")


@pytest.mark.parametrize("content", ["{", "[]", '{"a": "1"}', '{"a": -1}', '{"a": null}', "\xff"])
def test_a_damaged_file_of_added_tokens(tmp_path, content):
    folder = shutil.copytree(LLAVA / "tokenizers" / "sp_legacy", tmp_path / "model")
    (folder / "added_tokens.json").write_text(content, "latin-1")
    with pytest.raises(UserError, match=r"added_tokens\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "content", ['{"x": "\\ud800"}', "[" * 100_000, '{"x": ' + "9" * 5000 + "}"]
)
def test_json_that_cannot_be_written_again(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not JSON"):
        load_tokenizer(folder)
