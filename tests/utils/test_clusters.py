"""Addresses of Ray clusters that cannot be used: one line says why, before Ray itself tries for minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from adadiff.utils.clusters import connected
from adadiff.utils.errors import InputError
from tests.ports import answering

SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture
def answering_port() -> Iterator[int]:
    """A port of 127.0.0.1 that answers as Ray's server does."""
    with answering(SETTINGS_FRAME) as port:
        yield port


@pytest.fixture
def joining_fails(monkeypatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'adadiff[cluster]'")

    def refuse(**options: object) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_loopback_address_has_to_answer_where_ray_goes_in_its_place(answering_port, joining_fails, monkeypatch, host):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.2")  # nobody listens there
    with pytest.raises(InputError, match=rf"no Ray answers at 127\.0\.0\.2:{answering_port} "):
        connected(f"{host}:{answering_port}").__enter__()


def test_a_cluster_that_cannot_be_joined_names_the_setting_for_its_token(answering_port, joining_fails, monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    message = (
        rf"the Ray at 127\.0\.0\.1:{answering_port} cannot be joined \(Failed to connect\): .* RAY_AUTH_MODE=token"
    )
    with pytest.raises(InputError, match=message):
        connected(f"127.0.0.1:{answering_port}").__enter__()


def test_no_ray_on_this_machine_names_the_command_that_starts_it(joining_fails):
    with pytest.raises(InputError, match=r"no Ray on this machine .*: start one with `ray start --head`"):
        connected("auto").__enter__()


def test_a_ray_that_was_imported_before_keeps_the_token_setting_that_it_read_then(joining_fails, monkeypatch):
    """Its processes, which read it as they start, would take another one for granted and be refused."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr("ray.init", lambda **options: None)
    with connected(None):
        assert "RAY_AUTH_MODE" not in os.environ
