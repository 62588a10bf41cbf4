"""Test sets that carry a level of relevance of their own, known by their judgements.

Sources: the overviews of the TREC 2019 to 2023 Deep Learning tracks (passages: binary measures from
grade 2 on) and the paper on ANTIQUE (grades 1 to 4, relevant from 3 on).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.trec import Qrels

PASSAGE = re.compile(r"[0-9]{1,7}")
PASSAGE_V2 = re.compile(r"msmarco_(v2\.1_)?passage_[0-9]+_[0-9]+")
ANTIQUE = re.compile(r"[0-9]+_[0-9]+")
DEFAULT_LEVEL = 1
SHARE = 0.8  # of the topics must be known ones
LOOKED_AT = 1000  # judgements whose document ids are looked at

_DL_2019 = """
19335 47923 87181 87452 104861 130510 131843 146187 148538 156493 168216 182539 183378 207786 264014
359349 405717 443396 451602 489204 490595 527433 573724 833860 855410 915593 962179 1037798 1063750
1103812 1106007 1110199 1112341 1113437 1114646 1114819 1115776 1117099 1121402 1121709 1124210
1129237 1133167
"""
_DL_2020 = """
23849 42255 47210 67316 118440 121171 135802 141630 156498 169208 174463 258062 324585 330975 332593
336901 390360 405163 555530 583468 640502 673670 701453 730539 768208 877809 911232 914916 938400
940547 997622 1030303 1037496 1043135 1051399 1064670 1071750 1105792 1106979 1108651 1109707
1110678 1113256 1115210 1116380 1119543 1121353 1122767 1127540 1131069 1132532 1133579 1136043
1136047 1136962
"""
_DEEP_LEARNING = {2019: frozenset(_DL_2019.split()), 2020: frozenset(_DL_2020.split())}


class Level(NamedTuple):
    """From which grade on a document is relevant to binary measures, and why."""

    grade: int
    why: str


def level(qrels: Qrels) -> Level:
    """Tell from the judgements which level their test set asks for; 1 where none is known."""
    judged = [(docid, grade) for topic in qrels.values() for docid, grade in topic.items()]
    highest = max((grade for _, grade in judged), default=0)
    lowest = min((grade for _, grade in judged), default=0)
    docids = [docid for docid, _ in judged[:LOOKED_AT]]

    def all_are(form: re.Pattern[str]) -> bool:
        return all(map(form.fullmatch, docids))

    if highest == 3 and all_are(PASSAGE):
        for year, topics in _DEEP_LEARNING.items():
            if len(topics & qrels.keys()) >= SHARE * len(qrels):
                return Level(2, f"as for the passages of TREC Deep Learning {year}")
    if highest == 3 and all_are(PASSAGE_V2):
        return Level(2, "as for the passages of TREC Deep Learning from 2021 on")
    if (lowest, highest) == (1, 4) and all_are(ANTIQUE):
        return Level(3, "as for ANTIQUE")
    return Level(DEFAULT_LEVEL, "the default")
