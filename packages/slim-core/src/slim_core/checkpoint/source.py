"""``Source``: tensors of one open file. Verified ones are read into memory of their own, others are mapped.

What was hashed is what is used, whoever writes to the file later. Without verification there is nothing to keep, and
the file is mapped copy-on-write, as safetensors does it: pages are read when they are first used.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from slim_core.checkpoint.checking import batches, damaged
from slim_core.checkpoint.header import STATE_ROLES, Header
from slim_core.checkpoint.packing import packed_form
from slim_core.checkpoint.quantized import from_integers
from slim_core.checkpoint.sparse_tensors import from_sparse
from slim_core.errors import CheckpointError

_CHUNK = 2**20
_ARENA = 2**23  # from this size on, tensors share one allocation of huge pages: thousands of page faults less
_ALIGNMENT = 64
_LAYOUTS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}


class Source:
    """Reads tensors of one open file.

    Args:
        handle: the open file.
        header: its header.
        verify: compare each tensor's SHA-256 with the header's.
    """

    def __init__(self, handle: int, header: Header, verify: bool) -> None:
        self._handle, self._header, self._verify = handle, header, verify

    def read(self, names: Iterable[str], *, mapped: bool = False) -> dict[str, Tensor]:
        """Return stored tensors as they are stored, by stored name.

        Raises:
            CheckpointError: a hash differs, a bool is neither 0 nor 1, or there is not enough memory.
        """
        wanted = list(names)
        if mapped and not self._verify:
            tensors = self._mapped(wanted)
        else:
            tensors = self._allocated(wanted)
            self._fill_all(wanted, tensors)
        for name, tensor in tensors.items():
            if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
                raise CheckpointError("a bool is neither 0 nor 1", field=f"tensors.{name}")
        return tensors

    def state(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors as the model has them, by stored name; packed ones as floats again.

        Args:
            scales: the transforms' tensors, by stored name.
        """
        names = [name for name, record in self._header.tensors.items() if record.role in STATE_ROLES]
        tensors = self.read(names, mapped=True)
        for name in names:
            record = self._header.tensors[name]
            if record.sparse is not None:
                dense = record.dtype if record.packing is None else packed_form(record.packing, record.shape)[0]
                dtype = getattr(torch, dense)
                tensors[name] = from_sparse(tensors[name], record.packing, record.shape, dtype, record.sparse, name)
        known = {**scales, **tensors}
        for name in names:
            record = self._header.tensors[name]
            packing = record.packing
            if packing is not None:
                zero = None if packing.zero_point is None else known[packing.zero_point]
                dtype = getattr(torch, record.dtype)
                tensors[name] = from_integers(
                    tensors[name], packing, record.shape, dtype, known[packing.scale], zero, name
                )
            if record.layout is not None:
                tensors[name] = tensors[name].contiguous(memory_format=_LAYOUTS[record.layout])
        return tensors

    def _mapped(self, names: list[str]) -> dict[str, Tensor]:
        try:
            view = mmap.mmap(
                self._handle, self._header.file_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the file cannot be mapped: {error}", field="file size") from error
        return {name: self._view(name, view, self._header.data_start + self._header.stored[name].start)
                for name in names}  # fmt: skip

    def _allocated(self, names: list[str]) -> dict[str, Tensor]:
        stored = self._header.stored
        total = sum(-(-stored[name].nbytes // _ALIGNMENT) * _ALIGNMENT for name in names)
        try:
            if total < _ARENA or not hasattr(mmap, "MADV_HUGEPAGE"):
                return {name: torch.empty(stored[name].shape, dtype=getattr(torch, stored[name].dtype))
                        for name in names}  # fmt: skip
            arena = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (RuntimeError, MemoryError, OSError, OverflowError) as error:
            largest = max(names, key=lambda name: stored[name].nbytes)
            raise CheckpointError(
                f"there is no memory for its {stored[largest].nbytes} bytes", field=f"tensors.{largest}"
            ) from error
        _advise(arena)
        tensors, position = {}, 0
        for name in names:
            tensors[name] = self._view(name, arena, position)
            position += -(-stored[name].nbytes // _ALIGNMENT) * _ALIGNMENT
        return tensors

    def _view(self, name: str, memory: mmap.mmap, offset: int) -> Tensor:
        stored = self._header.stored[name]
        dtype = getattr(torch, stored.dtype)
        if not stored.nbytes:
            return torch.empty(stored.shape, dtype=dtype)
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(stored.shape), offset=offset).reshape(stored.shape)

    def _fill_all(self, names: list[str], tensors: Mapping[str, Tensor]) -> None:
        def work(part: list[str]) -> list[str]:
            return [name for name in part if not self._fill(name, tensors[name])]

        parts = batches(self._header, names)
        if len(parts) < 2:
            wrong = [name for part in parts for name in work(part)]
        else:
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                wrong = [name for found in pool.map(work, parts) for name in found]
        if wrong:
            raise damaged(sorted(wrong))

    def _fill(self, name: str, tensor: Tensor) -> bool:
        stored = self._header.stored[name]
        digest = hashlib.sha256()
        if stored.nbytes:
            buffer = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            position, base = 0, self._header.data_start + stored.start
            while position < stored.nbytes:
                # Hashed in pieces while they are in the cache.
                part = buffer[position : position + _CHUNK]
                count = os.preadv(self._handle, [part], base + position)
                if not count:
                    raise CheckpointError("the file ended while it was read", field=f"tensors.{name}")
                if self._verify:
                    digest.update(part[:count])
                position += count
        return not self._verify or digest.hexdigest() == self._header.tensors[name].sha256


def _advise(arena: mmap.mmap) -> None:
    try:
        arena.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return  # a kernel without huge pages: slower, nothing else
