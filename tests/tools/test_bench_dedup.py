"""The benchmark of deduplication: what it draws, and that its figures are those of a search."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from tools import bench_dedup


def test_a_tenth_of_what_is_drawn_are_near_copies():
    vectors = bench_dedup.draw(2000, 64).astype(np.float32)
    similarity = vectors @ vectors.T - np.eye(2000)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    assert (similarity[1800:, :1800].max(1) > 0.9).mean() > 0.95
    assert (similarity[:1800, :1800] > 0.9).sum() == 0


def test_one_process_answers_each_line_with_a_search(tmp_path, monkeypatch, capsys):
    vectors = bench_dedup.draw(1000, 64)
    assert bench_dedup.write(tmp_path / "signatures", vectors) == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    with flagsaver.flagsaver(serve=str(tmp_path), bucket_size=1000, cosine=0.9, ram_gib=2.0):
        bench_dedup.main([])
    about, first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert about["buckets"] == 1
    assert about["k-means"] > 0
    similarity = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    copies = (np.triu(similarity, 1) > 0.9).any(0).sum()
    assert first["pairs"] == second["pairs"] == pytest.approx(copies, abs=3)
    assert 0 < first["seconds"] < 60
    assert first["peak_gib"] > 0.1


def test_the_exponent_of_a_power_is_its_power():
    counts = [1000, 5000, 20_000]
    assert bench_dedup.exponent(counts, [3e-4 * n**1.3 for n in counts]) == pytest.approx(1.3)


def test_the_peer_needs_nothing_of_ours():
    text = pathlib.Path(bench_dedup.__file__).with_name("bench_dedup_peer.py").read_text()
    assert "import faiss" in text
    assert "import clipdg_jax" not in text
