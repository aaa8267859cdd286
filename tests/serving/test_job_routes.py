"""The download of a job: a zip that is never in memory as a whole."""

from __future__ import annotations

import io
import zipfile

from adadiff.serving.job_routes import zipped


def test_a_download_is_sent_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("adadiff.serving.job_routes.CHUNK", 1000)
    paths = [tmp_path / f"{k:06d}.png" for k in range(20)]
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]) * 300)
    parts = list(zipped(paths))
    assert max(map(len, parts[:-1])) < 2000
    assert parts == list(zipped(paths))
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {p.name: p.read_bytes() for p in paths}
