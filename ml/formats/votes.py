"""Votes of several annotators, and the labels that they agree on; in the index of a data set.

An annotator is a column of a table of labels. Ingest computes both rules of consensus once, since votes never change:
the majority of an image's votes, and the most probable label by `ml.data.dawid_skene`. Labels are names here: what an
annotator writes need not be a class of the data set.
"""

from __future__ import annotations

import collections
import csv
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ml.formats import label_versions

CONSENSUS = "consensus"  # as the column to learn from: the majority of the annotators
Rule = Literal["majority", "dawid_skene"]
RULES: tuple[Rule, ...] = get_args(Rule)

SCHEMA = """
CREATE TABLE annotator ("index" INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE vote_label ("index" INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE vote (image INTEGER NOT NULL, annotator INTEGER NOT NULL, label INTEGER NOT NULL,
  PRIMARY KEY (image, annotator)) WITHOUT ROWID;
CREATE TABLE consensus (image INTEGER PRIMARY KEY, labels INTEGER NOT NULL, majority INTEGER NOT NULL,
  majority_share REAL NOT NULL, dawid_skene INTEGER NOT NULL, dawid_skene_probability REAL NOT NULL);
"""
SELECT_CONSENSUS = """
SELECT image, m.name, majority_share, d.name, dawid_skene_probability FROM consensus
  JOIN vote_label m ON m."index" = majority JOIN vote_label d ON d."index" = dawid_skene
"""


class Votes(NamedTuple):
    """What annotators say of the images of a container.

    Attributes:
        annotators: Their names.
        by_path: For each image the vote of every annotator, None where one has not voted.
    """

    annotators: tuple[str, ...]
    by_path: dict[str, tuple[str | None, ...]]


class Consensus(NamedTuple):
    """The labels of an image by both rules.

    Attributes:
        image: Its number.
        majority: The label with most votes.
        majority_share: Its share of the image's votes, in (0, 1].
        dawid_skene: The most probable label.
        dawid_skene_probability: Its probability, in (0, 1].
    """

    image: int
    majority: str
    majority_share: float
    dawid_skene: str
    dawid_skene_probability: float

    def by(self, rule: str) -> tuple[str, float]:
        """The label of a rule, and its share or probability."""
        if rule == "majority":
            return self.majority, self.majority_share
        return self.dawid_skene, self.dawid_skene_probability


class ImageVotes(NamedTuple):
    """Votes of the annotators in their order, None where one has not voted, and what they agree on."""

    votes: tuple[str | None, ...]
    consensus: Consensus


def parse_names(text: str) -> tuple[str, ...]:
    """Names of columns that are separated by commas; one that has a comma stands in double quotes, as in CSV."""
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []))


def majority(votes: Sequence[str | None]) -> str | None:
    """The label with most votes, None without any.

    Of several with equally many, it is the one that the annotator named first has voted for, or else the second, and so
    on: a rule that prefers no class.
    """
    counts = collections.Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    return next((vote for vote in votes if vote is not None and counts[vote] == most), None)


def write(
    database: sqlite3.Connection,
    annotators: Sequence[str],
    images: Mapping[int, ImageVotes],
) -> None:
    """Write the tables of votes into an index that has none.

    Args:
        database: The index, in a transaction of the caller.
        annotators: Their names.
        images: Votes by number of the image; those without any vote are left out.
    """
    database.executemany("INSERT INTO annotator VALUES (?,?)", enumerate(annotators))
    consensus = [of_image.consensus for of_image in images.values()]
    names = {vote for of_image in images.values() for vote in of_image.votes if vote is not None}
    ids = {name: number for number, name in enumerate(sorted(names))}
    database.executemany("INSERT INTO vote_label VALUES (?,?)", ((number, name) for name, number in ids.items()))
    database.executemany(
        "INSERT INTO vote VALUES (?,?,?)",
        (
            (image, annotator, ids[vote])
            for image, of_image in images.items()
            for annotator, vote in enumerate(of_image.votes)
            if vote is not None
        ),
    )
    distinct = (len(set(of_image.votes) - {None}) for of_image in images.values())
    database.executemany(
        "INSERT INTO consensus VALUES (?,?,?,?,?,?)",
        (
            (c.image, labels, ids[c.majority], c.majority_share, ids[c.dawid_skene], c.dawid_skene_probability)
            for c, labels in zip(consensus, distinct, strict=True)
        ),
    )


def read_annotators(index: Path) -> list[str]:
    """Names of the annotators of a data set in the order of their votes; none for one without votes.

    Args:
        index: Its index; one that was written before there were votes has no tables for them.
    """
    with label_versions.opened(index) as database:
        if not _has_votes(database):
            return []
        return [name for (name,) in database.execute('SELECT name FROM annotator ORDER BY "index"')]


def read(
    index: Path,
    *,
    numbers: Collection[int] | None = None,
    disagreeing: bool | None = None,
    after: int = -1,
    limit: int = -1,
) -> list[ImageVotes]:
    """Votes by image, in the order of their numbers; images without a vote are left out.

    Args:
        index: Of the data set.
        numbers: Only of these images.
        disagreeing: Only of images whose votes differ, or only of those whose votes do not.
        after: Only of images with a higher number.
        limit: Of at most so many images; -1 for all.
    """
    with label_versions.opened(index) as database:
        if not _has_votes(database):
            return []
        where, values = ["image > ?"], list[object]([after])
        if disagreeing is not None:
            where.append("labels > 1" if disagreeing else "labels = 1")
        if numbers is not None:
            database.execute("CREATE TEMP TABLE requested (number INTEGER PRIMARY KEY)")
            database.executemany("INSERT OR IGNORE INTO requested VALUES (?)", ((number,) for number in numbers))
            where.append("image IN (SELECT number FROM requested)")
        query = f"{SELECT_CONSENSUS} WHERE {' AND '.join(where)} ORDER BY image LIMIT ?"
        consensus = [Consensus(*row) for row in database.execute(query, (*values, limit))]
        annotators = database.execute("SELECT COUNT(*) FROM annotator").fetchone()[0]
        votes: dict[int, list[str | None]] = {c.image: [None] * annotators for c in consensus}
        if consensus:
            names = dict(database.execute('SELECT "index", name FROM vote_label'))
            span = (consensus[0].image, consensus[-1].image)
            rows = database.execute("SELECT image, annotator, label FROM vote WHERE image BETWEEN ? AND ?", span)
            for image, annotator, label in rows:
                if image in votes:
                    votes[image][annotator] = names[label]
    return [ImageVotes(tuple(votes[c.image]), c) for c in consensus]


def read_consensus(index: Path) -> list[Consensus]:
    """What the annotators agree on, for every image with a vote, in the order of their numbers."""
    with label_versions.opened(index) as database:
        if not _has_votes(database):
            return []
        return [Consensus(*row) for row in database.execute(f"{SELECT_CONSENSUS} ORDER BY image")]


def agreement(annotators: Sequence[str], images: Iterable[ImageVotes]) -> list[dict[str, object]]:
    """For each annotator: `name`, `votes` and, by rule, the share of these that is the consensus' label (`agreement`).

    Args:
        annotators: Their names.
        images: Votes of all images.
    """
    counts = [0] * len(annotators)
    agreed: dict[Rule, list[int]] = {rule: [0] * len(annotators) for rule in RULES}
    for of_image in images:
        labels = [(agreed[rule], of_image.consensus.by(rule)[0]) for rule in RULES]
        for annotator, vote in enumerate(of_image.votes):
            if vote is not None:
                counts[annotator] += 1
                for of_rule, label in labels:
                    of_rule[annotator] += vote == label
    return [
        {
            "name": name,
            "votes": counts[n],
            "agreement": {rule: agreed[rule][n] / counts[n] if counts[n] else None for rule in RULES},
        }
        for n, name in enumerate(annotators)
    ]


def _has_votes(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'vote'").fetchone() is not None
