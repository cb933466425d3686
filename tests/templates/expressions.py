"""What EventBridge Scheduler accepts as a schedule, which no linter looks into (EventBridge Scheduler User Guide, "Schedule types")."""

from __future__ import annotations

import datetime
import re
import zoneinfo

_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
_DAYS = "SUN MON TUE WED THU FRI SAT".split()


def _number(text, least, greatest, names=()):
    if text.upper() in names:
        return names.index(text.upper()) + 1
    if not text.isdigit() or not least <= int(text) <= greatest:
        raise ValueError(f"{text!r} is not within {least}-{greatest}")
    return int(text)


def _field(text, least, greatest, names=(), extra=None):
    if text == "?" and extra is None:
        raise ValueError("'?' belongs in day-of-month or day-of-week")
    for part in text.split(","):
        if part == "*" or (extra is not None and part == "?"):
            if text != part:
                raise ValueError(f"{part!r} stands alone")
            continue
        if extra and re.fullmatch(extra, part, re.IGNORECASE):
            continue
        span, slash, step = part.partition("/")
        if slash and (not step.isdigit() or int(step) == 0):
            raise ValueError(f"{part!r} has no step")
        if slash and span == "*":
            continue
        first, dash, last = span.partition("-")
        low = _number(first, least, greatest, names)
        if dash and _number(last, least, greatest, names) < low:
            raise ValueError(f"{span!r} runs backwards")


def schedule_problem(expression: str) -> str | None:
    """None, or what is wrong with a cron(), rate() or at() expression."""
    match = re.fullmatch(r"(cron|rate|at)\((.+)\)", expression)
    if not match:
        return f"{expression!r} is not cron(...), rate(...) or at(...)"
    kind, body = match.groups()
    if kind == "rate":
        rate = re.fullmatch(r"([1-9]\d*) (minute|hour|day)(s?)", body)
        if not rate:
            return f"{expression!r} is not rate(NUMBER minutes|hours|days)"
        if (rate[1] == "1") == (rate[3] == "s"):
            return f"{expression!r}: the unit is singular for 1 and plural for more"
        return None
    if kind == "at":
        try:
            datetime.datetime.strptime(body, "%Y-%m-%dT%H:%M:%S")
        except ValueError:
            return f"{expression!r} is not at(yyyy-mm-ddThh:mm:ss)"
        return None
    fields = body.split()
    if len(fields) != 6:
        return f"{expression!r} has {len(fields)} fields; minutes, hours, day of month, month, day of week and year are six"
    minutes, hours, day_of_month, month, day_of_week, year = fields
    try:
        for name, arguments in {
            "minutes": (minutes, 0, 59),
            "hours": (hours, 0, 23),
            "day of month": (day_of_month, 1, 31, (), r"L(W|-\d+)?|([1-9]|[12]\d|3[01])W"),
            "month": (month, 1, 12, _MONTHS),
            "day of week": (day_of_week, 1, 7, _DAYS, r"L|([1-7]|SUN|MON|TUE|WED|THU|FRI|SAT)(L|#[1-5])"),
            "year": (year, 1970, 2199),
        }.items():
            try:
                _field(*arguments)
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}") from None
        if (day_of_month == "?") == (day_of_week == "?"):
            raise ValueError("exactly one of day of month and day of week is '?'")
    except ValueError as problem:
        return f"{expression!r}: {problem}"
    return None


def time_zone_problem(name: str) -> str | None:
    if name in ("UTC", "Etc/UTC"):
        return None
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return f"{name!r} is not an IANA time zone"
    return None
