"""Written dates and what ISO 8601 makes of them, drawn here, nothing downloaded: "Saturday, the 3rd of May, 1998" -> 1998-05-03.

Every day from 1800 to 2199 belongs to one split. What is written is a function of (split_seed, split, index) alone. Conventions make
it unambiguous: with slashes the month comes before the day, with dots after it, unless the year comes first, in four digits; a year of two
digits is 1969 to 2068, as POSIX has it.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterator
from datetime import date

from refresher_runner.data.pairs import Corpus, Pair, PairSet
from refresher_runner.errors import ConfigError
from refresher_runner.registry import DATASETS
from refresher_runner.schema import NonNegative, Positive
from refresher_runner.spec import DataModule, PairSpec
from refresher_runner.vocabulary import SPECIAL, characters

FIRST, LAST = date(1800, 1, 1), date(2199, 12, 31)
DAYS = LAST.toordinal() - FIRST.toordinal() + 1
SHORT_YEARS = range(1969, 2069)
BLOCK_SIZE = 64  # tokens: no style is as long

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
PRESS = ["Jan.", "Feb.", "March", "April", "May", "June", "July", "Aug.", "Sept.", "Oct.", "Nov.", "Dec."]  # as newspapers have them
TENTHS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
TEENTHS = ["tenth", "eleventh", "twelfth", *(f"{teen}teenth" for teen in ("thir", "four", "fif", "six", "seven", "eigh", "nine"))]
ORDINALS = [*TENTHS, *TEENTHS, "twentieth", *(f"twenty-{day}" for day in TENTHS), "thirtieth", "thirty-first"]

STYLES = """
{y}-{mm}-{dd} | {y}/{mm}/{dd} | {y}.{mm}.{dd} | {y}{mm}{dd}
{m}/{d}/{y} | {mm}/{dd}/{y} | {m}/{d}/{yy} | {mm}/{dd}/{yy}
{d}.{m}.{y} | {dd}.{mm}.{y} | {d}. {m}. {y} | {d}.{m}.{yy} | {dd}.{mm}.{yy}
{d} {month} {y} | {d} {month}, {y} | {d} {mon} {y} | {dd} {mon} {y} | {d}-{mon}-{y} | {dd}-{mon}-{yy} | {d} {press} {y} | {d} {mon} '{yy}
{month} {d}, {y} | {month} {d} {y} | {mon} {d}, {y} | {mon} {dd} {y} | {press} {d}, {y} | {press} {d}, '{yy}
{y} {month} {d} | {y}, {mon} {d}
{month} {nth}, {y} | {mon} {nth} {y} | {nth} {month} {y} | {nth} {mon}, {y} | {nth} of {month} {y}
the {nth} of {month}, {y} | the {nth} of {month} {y} | the {nth} of {press} '{yy} | {month} the {nth}, {y}
the {ordinal} of {month}, {y} | {month} the {ordinal}, {y} | the {ordinal} of {month} {y} | {ordinal} of {mon} {y} | {month} {ordinal}, {y}
{weekday}, {month} {d}, {y} | {weekday}, {d} {month} {y} | {weekday} {d} {month} {y} | {weekday}, {press} {d}, {y} | {weekday}, {d}.{m}.{y}
{day}, {dd} {mon} {y} | {day} {mon} {d} {y} | {day}, {m}/{d}/{y} | {day} {d} {mon} '{yy} | {day}. {d} {month} {y}
{weekday}, {month} {nth}, {y} | {weekday}, the {nth} of {month}, {y} | {weekday} the {nth} of {month} {y}
{weekday}, the {ordinal} of {month}, {y} | {weekday} the {ordinal} of {month}, {y} | {day}, {month} the {ordinal} {y}
"""
TEMPLATES = [style.strip() for line in STYLES.strip().splitlines() for style in line.split(" | ")]
LONG_TEMPLATES = [style for style in TEMPLATES if "{yy}" not in style]


@DATASETS.register("dates")
def build_dates(
    *,
    train_count: Positive,
    val_count: Positive,
    test_count: Positive,
    split_seed: NonNegative,
    batch_size: Positive,
    eval_batch_size: Positive,
) -> DataModule[PairSpec]:
    """Dates from 1800 to 2199 written in many styles, and ISO 8601: drawn on the spot, nothing to download."""
    if val_count + test_count >= DAYS:
        problem = f"with data.val_count={val_count} leaves no day of {DAYS} to train on"
        raise ConfigError(problem, key="data.test_count", value=test_count, cure=f"less than {DAYS} together")
    return PairSet(lambda _: draw_dates(train_count, val_count, test_count, split_seed), BLOCK_SIZE, batch_size, eval_batch_size)


def draw_dates(train_count: int, val_count: int, test_count: int, split_seed: int) -> Corpus:
    """Days of validation and test occur once; those of training as often as one another, or almost."""
    import numpy as np

    days = np.random.RandomState(split_seed % 2**32).permutation(DAYS)  # whose draws numpy has frozen for good
    cut = test_count, test_count + val_count
    parts = {"train": (days[cut[1] :], train_count), "val": (days[cut[0] : cut[1]], val_count), "test": (days[: cut[0]], test_count)}
    vocabulary = characters(string.ascii_letters + string.digits + " ,.-/'", SPECIAL)
    splits = {split: list(_drawn(split, days.tolist(), count, split_seed)) for split, (days, count) in parts.items()}
    digest = hashlib.sha256(repr(splits).encode()).hexdigest()
    return Corpus(vocabulary, vocabulary, splits, 0, {"dates": digest})


def _drawn(split: str, days: list[int], count: int, split_seed: int) -> Iterator[Pair]:
    from refresher_runner.data.loaders import mix

    for index in range(count):
        day = date.fromordinal(FIRST.toordinal() + days[index % len(days)])
        yield write(day, random.Random(mix("dates", split_seed, split, index))), day.isoformat()


def write(day: date, draws: random.Random) -> str:
    """A day in one of the styles; one of ten in capitals, and one in small letters."""
    style, case = draws.random(), draws.random()  # the one method whose draws Python has frozen for good
    styles = TEMPLATES if day.year in SHORT_YEARS else LONG_TEMPLATES
    text = styles[int(style * len(styles))].format(
        y=day.year,
        yy=f"{day.year % 100:02}",
        m=day.month,
        mm=f"{day.month:02}",
        mon=MONTHS[day.month - 1][:3],
        month=MONTHS[day.month - 1],
        press=PRESS[day.month - 1],
        d=day.day,
        dd=f"{day.day:02}",
        nth=f"{day.day}{'th' if 10 < day.day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day.day % 10, 'th')}",
        ordinal=ORDINALS[day.day - 1],
        day=WEEKDAYS[day.weekday()][:3],
        weekday=WEEKDAYS[day.weekday()],
    )
    return text.upper() if case < 0.1 else text.lower() if case < 0.2 else text
