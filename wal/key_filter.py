"""The filter in front of the runs: answers "never stored" from memory, so that new keys cost no disk access.

Rules it keeps: never a false negative for a key that was added; one memory access for each key. A wrong
"maybe" only costs a lookup. It must not know what keys stand for; it does rely on their being uniform
(they are hashes); keys that somebody made to collide slow lookups down and change no answer.

A key picks a 64-bit word by its leading bits and two bits in the word by its last. With 16 bits per key that
is 1.8 % wrong "maybe"s; one bit per key would be 6 %, and each costs a lookup in every run. Leading bits,
because runs are sorted: adding one sweeps the words in order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

ENTRY: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("fingerprint", "V8")])
"""An entry of a run: the key's halves as big-endian numbers (so they compare as the bytes do)."""
KEY: Final = np.dtype([("high", ">u8"), ("low", ">u8")])

Entries = npt.NDArray[np.void]

BITS_PER_KEY_MIN: Final = 16
_WORD_BITS: Final = 64
_WORDS_MIN: Final = 1024
_SCALAR_KEYS_MAX: Final = 16
"""Up to this many keys plain Python is faster than starting numpy."""
_ONE: Final = np.uint64(1)
_BIT_MASK: Final = np.uint64(63)
_SECOND_BIT: Final = np.uint64(6)


class KeyFilter:
    """A bitmap with room for `keys` keys at 16 to 32 bits each (2 to 4 bytes)."""

    def __init__(self, keys: int) -> None:
        words = _WORDS_MIN
        while words * _WORD_BITS < keys * BITS_PER_KEY_MIN:
            words *= 2
        self._words = np.zeros(words, dtype=np.uint64)
        self._shift = 64 - (words.bit_length() - 1)
        # Plain indexing of a memoryview is twice as fast as of an array.
        self._word_view: memoryview = self._words.data

    @property
    def keys_max(self) -> int:
        """How many keys it takes before it must grow."""
        return len(self._words) * _WORD_BITS // BITS_PER_KEY_MIN

    @property
    def size_bytes(self) -> int:
        """Memory taken."""
        return self._words.nbytes

    def add(self, entries: Entries) -> None:
        """Add the keys of sorted entries. Another thread may ask meanwhile: it sees some of them."""
        if not len(entries):
            return
        low = entries["low"].astype(np.uint64)
        bits = (_ONE << (low & _BIT_MASK)) | (_ONE << ((low >> _SECOND_BIT) & _BIT_MASK))
        at = entries["high"].astype(np.uint64) >> np.uint64(self._shift)
        # Sorted keys come grouped by word: combine each group, then touch each word once.
        starts = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
        self._words[at[starts]] |= np.bitwise_or.reduceat(bits, starts)

    def may_hold(self, key: bytes) -> bool:
        """False: the key was never added. True: perhaps it was."""
        number = int.from_bytes(key, "big")
        word: int = self._word_view[number >> (64 + self._shift)]
        return bool((word >> (number & 63)) & (word >> ((number >> 6) & 63)) & 1)

    def suspects(self, keys: bytes) -> list[int]:
        """Of the concatenated 16-byte keys, the indexes of those that were perhaps added, ascending."""
        count, rest = divmod(len(keys), KEY.itemsize)
        assert rest == 0
        if count <= _SCALAR_KEYS_MAX:
            may_hold = self.may_hold
            return [at for at in range(count) if may_hold(keys[at * 16 : at * 16 + 16])]
        halves = np.frombuffer(keys, dtype=KEY)
        low = halves["low"].astype(np.uint64)
        words = self._words[halves["high"].astype(np.uint64) >> np.uint64(self._shift)]
        hits = (words >> (low & _BIT_MASK)) & (words >> ((low >> _SECOND_BIT) & _BIT_MASK)) & _ONE
        found: list[int] = np.flatnonzero(hits).tolist()
        return found
