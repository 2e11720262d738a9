"""Where compiled programs are kept."""

from pathlib import Path

from metamorph_jax.runtime.compile_cache import cache_folder


def test_in_the_users_cache_by_kind_of_processor():
    folder = cache_folder({"XDG_CACHE_HOME": "/somewhere"})
    assert folder.parent == Path("/somewhere/metamorph_jax")
    assert folder == cache_folder({"XDG_CACHE_HOME": "/somewhere"})
    assert cache_folder({}).parent == Path("~/.cache/metamorph_jax").expanduser()


def test_where_jax_is_told_or_nowhere():
    assert cache_folder({"JAX_COMPILATION_CACHE_DIR": "/else"}) == Path("/else")
    assert cache_folder({"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": "/x"}) is None
