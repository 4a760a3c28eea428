"""Training data in shards: a process decodes a part of the packed corpus at a time, so that no machine needs room for all of it."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from typing import Iterator, Sequence

import numpy as np
from torch import Tensor

from camerabooth.prior.data import PairSource
from sap3d.errors import InputError


class ShardedSource:
    """The batches of a ``PairSource`` over the rank's own shard of the corpus, another one every ``shard_steps`` steps.

    corpora: ``dataset.corpus_reader.PackedCorpus``, whose objects are decoded when their shard is due, by a thread while the shard
    before it is in use: two shards are in memory. The objects are shuffled anew for every pass over the corpus and dealt to the
    ranks in turn, so that the shards of a pass are disjoint and hold every object once. Everything of a batch follows from (seed, step, rank,
    world size, shard_objects, shard_steps).
    """

    def __init__(self, corpora: Sequence, world_size: int, shard_objects: int, shard_steps: int, groups: int, targets: int, seed: int,
                 sets: Sequence[float] = (1.0,), augment: bool = True):  # fmt: skip
        self.corpora, self.world_size, self.shard_steps, self.seed = corpora, world_size, shard_steps, seed
        self.starts = np.cumsum([0] + [len(corpus) for corpus in corpora])
        self.shard_objects = shard_objects
        if shard_steps < 1 or not 1 <= shard_objects <= len(self):
            raise InputError(f"shard_objects={shard_objects}, shard_steps={shard_steps}: a shard is 1 .. {len(self)} objects (the corpus) and serves one step at least; shard_objects=0 reads the whole corpus")
        self._pairs = lambda views: PairSource(views, groups, targets, seed, sets, augment)
        self._key, self._now, self._next = None, None, None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def members(self, period: int, rank: int) -> list[int]:
        """Indices of the objects of the shard that serves steps ``period * shard_steps`` and on."""
        first = (period * self.world_size + rank) * self.shard_objects
        passes, places = np.divmod(np.arange(first, first + self.shard_objects), len(self))
        orders = {k: np.random.default_rng([self.seed, 7919, k]).permutation(len(self)) for k in np.unique(passes)}
        return [int(orders[k][place]) for k, place in zip(passes, places)]

    def load(self, period: int, rank: int) -> PairSource:
        """Decode a shard."""
        images, poses = [], []
        for index in self.members(period, rank):
            which = int(np.searchsorted(self.starts, index, "right")) - 1
            one, where = self.corpora[which].decode(index - self.starts[which])
            images.append(one)
            poses.append(where)
        polar, azimuth, radius = np.stack(poses).transpose(2, 0, 1)
        return self._pairs([SimpleNamespace(images=np.stack(images), polar_rad=polar, azimuth_rad=azimuth, radius=radius)])

    def batch(self, step: int, rank: int = 0) -> dict[str, Tensor]:
        """As ``PairSource.batch``."""
        key = (step // self.shard_steps, rank)
        if key != self._key:
            ready = self._next.result() if self._next is not None and self._next.key == key else self.load(*key)
            self._key, self._now, self._next = key, ready, _Ahead(self, (key[0] + 1, rank))
        return self._now.batch(step, rank)

    def stream(self, start: int, rank: int = 0) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count(start):
            yield self.batch(step, rank)


class _Ahead(threading.Thread):
    """Loads the shard ``key`` in the background; a daemon, so that the program's end does not wait for it."""

    def __init__(self, source: ShardedSource, key: tuple[int, int]):
        super().__init__(daemon=True)
        self.source, self.key, self.found, self.error = source, key, None, None
        self.start()

    def run(self) -> None:
        try:
            self.found = self.source.load(*self.key)
        except Exception as error:  # raised where the shard is asked for
            self.error = error

    def result(self) -> PairSource:
        self.join()
        if self.error is not None:
            raise self.error
        return self.found
