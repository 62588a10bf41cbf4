"""Token ids of plain texts word by word, where a tokenizer takes words as they come.

BERT's tokenizer cuts a text into words before it looks at any, and the same words come again and
again: each goes through the tokenizer once. What stands between two spaces is cut further where it
is all ASCII, whose rules are plain; else it is one word, and the tokenizer says what becomes of it.
"""

from __future__ import annotations

import json
import re
import string
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

PLAIN = (string.ascii_letters + string.digits + string.punctuation + " \t\n\r").encode()
# The tokenizer leaves these out, so that they separate nothing; here they would.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85]")
WORD = re.compile(rf"[A-Za-z0-9]+|[{re.escape(string.punctuation)}]")
MOST = 1 << 25  # bytes that words may take
SIZE = 256  # of a short one: two objects and a place in a dictionary
WIDE = 8  # bytes a character, of the text and of its ids
PROBE = (
    "It's 1,000 co-operative e-mails_at\tWWW.Example.com\r\n(re)tokenised [SEP] ##ing "
    "\u00c9t\u00e9\u2019s \u4e2d\u6587 $5.00"
)


class Words:
    """Words that were met, with their ids.

    Args:
        backend: a tokenizer of the tokenizers library, which takes special tokens for plain text.
        lowercase: whether it does so to all.
        longest: characters of a word that it looks up.
    """

    def __init__(self, backend: Any, *, lowercase: bool, longest: int) -> None:
        self._backend, self._lowercase = backend, lowercase
        # A word that is a token by itself is no other tokens: the longest are looked for first.
        self._tokens = {
            word: number.to_bytes(4, sys.byteorder)
            for word, number in backend.get_vocab(with_added_tokens=False).items()
            if len(word) <= longest and WORD.fullmatch(word)
        }
        self._known, self._size = dict(self._tokens), 0

    @classmethod
    def of(cls, backend: Any) -> Words | None:
        """Make one for a tokenizer, if it is built as BERT's and says the same."""
        built = json.loads(backend.to_str())
        kinds = [
            (built[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")
        ]
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            return None
        normalizer, added = built["normalizer"], built["added_tokens"]
        if not normalizer["clean_text"] or not all(token["special"] for token in added):
            return None
        longest = built["model"]["max_input_chars_per_word"]
        made = cls(backend, lowercase=normalizer["lowercase"], longest=longest)
        try:
            [found] = made.ids([PROBE])
            expected = backend.encode(PROBE, add_special_tokens=False).ids
        except Exception:  # of no other kind where there is no unknown token
            return None
        return made if found is not None and found.tolist() == expected else None

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32] | None]:
        """Token ids of each text, without special tokens; None for those that are not taken."""
        cut = [self._words(text) for text in texts]
        known = self._known  # which another thread may exchange for a new one
        try:
            return [None if words is None else _joined(known, words) for words in cut]
        except KeyError:
            new = {word for words in cut if words for word in words if word not in known}
        known.update(self._made(sorted(new)))
        self._size += sum(SIZE + WIDE * len(word) for word in new)
        if self._size > MOST:
            self._known, self._size = dict(self._tokens), 0
        return [None if words is None else _joined(known, words) for words in cut]

    def _words(self, text: str) -> list[str] | None:
        try:
            if text.isascii():
                plain = not text.encode().translate(None, PLAIN)
                return self._plain_words(text) if plain else None
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, as JSON may hold it
            return None
        if CONTROL.search(text):
            return None
        words: list[str] = []
        for ascii_only, group in groupby(text.split(), str.isascii):
            some = list(group)
            words += self._plain_words(" ".join(some)) if ascii_only else some
        return words

    def _plain_words(self, text: str) -> list[str]:
        return WORD.findall(text.lower() if self._lowercase else text)

    def _made(self, words: list[str]) -> dict[str, bytes]:
        encoded = self._backend.encode_batch_fast(words, add_special_tokens=False)
        ids = (np.array(one.ids, np.int32).tobytes() for one in encoded)
        return dict(zip(words, ids, strict=True))


def _joined(known: Mapping[str, bytes], words: list[str]) -> NDArray[np.int32]:
    return np.frombuffer(b"".join(map(known.__getitem__, words)), np.int32)
