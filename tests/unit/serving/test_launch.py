import threading

import pytest

import lorakit
from fixtures.serving import require_threads_ended
from lorakit.errors import ConfigError
from lorakit.libraries import extras
from lorakit.serving import serve
from lorakit.serving.launch import require_ray_serve, require_server_packages


def test_a_run_is_served_in_one_line_and_stops_with_its_block(done):
    result, _ = done
    before = threading.active_count()
    with lorakit.serve(result.run_dir, port=0) as server:
        assert server.url.startswith("http://127.0.0.1:")
        (adapter,) = server.service.adapters()
        assert adapter[0].name == "done" and adapter[0].in_memory
    server.wait()
    require_threads_ended(before)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(ConfigError) as caught:
        require_server_packages()
    assert str(caught.value) == (
        "Serving adapters needs the package fastapi, which is not installed. Install it: pip "
        "install 'lorakit[serve]'."
    )


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    with pytest.raises(ConfigError) as caught:
        require_ray_serve()
    assert str(caught.value) == (
        "Serving on Ray needs the package ray, which is not installed. Install it: pip install "
        "'lorakit[serve-ray]'."
    )


def test_other_machines_are_not_let_in_by_accident(tiny_llama_dir):
    with pytest.raises(ConfigError, match="Anybody could use this server"):
        serve(tiny_llama_dir, host="0.0.0.0", port=0)
