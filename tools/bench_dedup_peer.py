"""faiss's IVF index on the buckets of `tools.bench_dedup`; run by a Python that has faiss.

Needs `faiss-cpu` and `numpy`, and nothing of clipdg_jax. The embeddings are added to an
`IndexIVFFlat` whose lists have the centroids given, and each asks its own list (nprobe 1) for
whatever is within the threshold. For every line on its standard input it does so once, in parts of
bounded memory, and prints the seconds and the pairs found.
"""

import argparse
import json
import sys
import time

import faiss
import numpy as np

_QUERIES = 4096


def search(vectors: np.ndarray, centroids: np.ndarray, threshold: float) -> int:
    """Pairs whose product exceeds the threshold, each counted once."""
    count, width = centroids.shape
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(centroids)
    index = faiss.IndexIVFFlat(quantizer, width, count, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    index.add(vectors)
    index.nprobe = 1
    pairs = 0
    for start in range(0, len(vectors), _QUERIES):
        limits, _, found = index.range_search(vectors[start : start + _QUERIES], threshold)
        own = np.repeat(np.arange(len(limits) - 1) + start, np.diff(limits.astype(np.int64)))
        pairs += int((found > own).sum())
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--embeddings", required=True)
    parser.add_argument("--centroids", required=True)
    parser.add_argument("--threshold", type=float, required=True)
    options = parser.parse_args()
    vectors = np.load(options.embeddings).astype(np.float32)
    centroids = np.load(options.centroids)
    about = {"faiss": faiss.__version__, "threads": faiss.omp_get_max_threads()}
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        pairs = search(vectors, centroids, options.threshold)
        told = {"seconds": time.perf_counter() - start, "pairs": pairs}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
