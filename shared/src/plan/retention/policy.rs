//! What is to be kept: a list of rules, read strictly from JSON.
//!
//! The first rule that an artifact fits governs it, whatever later rules say; an artifact that fits none is kept.
//! Within a rule, one condition that holds is enough.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::domain::{ArtifactKind, Environment};
use crate::plan::retention::Reason;

/// The documented default: the last 30, and `testing` for 7 days.
pub const DEFAULT_POLICY: &str = r#"{"rules":[{"purposes":["testing"],"keep_within_days":7},{"keep_last":30}]}"#;

const MAX_COUNT: u64 = 100_000;
const MAX_DAYS: u64 = 36_500;
const SECONDS_A_DAY: i64 = 86_400;

const FIELDS: [&str; 11] = [
    "purposes",
    "environments",
    "databases",
    "artifacts",
    "keep_last",
    "keep_within_days",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_yearly",
    "keep_forever",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub rules: Vec<Rule>,
}

/// An empty list fits everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    pub purposes: Vec<String>,
    pub environments: Vec<Environment>,
    pub databases: Vec<String>,
    pub artifacts: Vec<ArtifactKind>,
    pub keep: Keep,
}

/// Zero keeps none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keep {
    pub last: u64,
    pub within_days: u64,
    /// The newest of each of so many days, weeks, … that have one.
    pub daily: u64,
    pub weekly: u64,
    pub monthly: u64,
    pub yearly: u64,
    pub forever: bool,
}

/// All that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct PolicyError {
    pub problems: Vec<String>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

impl Policy {
    /// The rule that governs an artifact, and its place in the list.
    pub fn rule_for(
        &self,
        environment: &Environment,
        database: &str,
        purpose: &str,
        kind: ArtifactKind,
    ) -> Option<(usize, &Rule)> {
        let fits = |rule: &Rule| {
            (rule.purposes.is_empty() || rule.purposes.iter().any(|p| p == purpose))
                && (rule.environments.is_empty() || rule.environments.contains(environment))
                && (rule.databases.is_empty() || rule.databases.iter().any(|d| d == database))
                && (rule.artifacts.is_empty() || rule.artifacts.contains(&kind))
        };
        self.rules.iter().enumerate().find(|(_, rule)| fits(rule))
    }
}

impl Rule {
    /// Whether everything that fits the other rule fits this one.
    fn covers(&self, other: &Self) -> bool {
        fn all<T: PartialEq>(own: &[T], other: &[T]) -> bool {
            own.is_empty() || !other.is_empty() && other.iter().all(|value| own.contains(value))
        }
        all(&self.purposes, &other.purposes)
            && all(&self.environments, &other.environments)
            && all(&self.databases, &other.databases)
            && all(&self.artifacts, &other.artifacts)
    }
}

impl Keep {
    fn keeps_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Why each backup is kept; no reason: it is not. `backups`: newest first, none later than `now`, each with
    /// whether it counts. What does not count pushes nothing out, and is never a day's or a month's newest.
    pub(super) fn reasons(&self, backups: &[(Timestamp, bool)], now: Timestamp) -> Vec<Vec<Reason>> {
        let mut calendars = [
            Calendar::new(self.daily, |day| day, Reason::Daily),
            // Day 0, 1970-01-01, was a Thursday: ISO weeks begin three days before.
            Calendar::new(self.weekly, |day| (day + 3).div_euclid(7), Reason::Weekly),
            Calendar::new(self.monthly, |day| month_of(day).0 * 12 + month_of(day).1, Reason::Monthly),
            Calendar::new(self.yearly, |day| month_of(day).0, Reason::Yearly),
        ];
        let mut newer = 0;
        let mut all = Vec::with_capacity(backups.len());
        for &(at, counts) in backups {
            let mut reasons = Vec::new();
            if self.forever {
                reasons.push(Reason::Forever);
            }
            if newer < self.last {
                reasons.push(Reason::Last(self.last));
            }
            if now.as_second() - at.as_second() <= self.within_days as i64 * SECONDS_A_DAY && self.within_days > 0 {
                reasons.push(Reason::Within(self.within_days));
            }
            if counts {
                newer += 1;
                let day = at.as_second().div_euclid(SECONDS_A_DAY);
                reasons.extend(calendars.iter_mut().filter_map(|calendar| calendar.take(day)));
            }
            all.push(reasons);
        }
        all
    }
}

/// The newest of each of so many periods.
struct Calendar {
    count: u64,
    period: fn(i64) -> i64,
    reason: fn(u64) -> Reason,
    current: Option<i64>,
    seen: u64,
}

impl Calendar {
    fn new(count: u64, period: fn(i64) -> i64, reason: fn(u64) -> Reason) -> Self {
        Self { count, period, reason, current: None, seen: 0 }
    }

    /// Whether the next older backup, of that day, is the newest of a period that is kept.
    fn take(&mut self, day: i64) -> Option<Reason> {
        if self.seen == self.count || self.current == Some((self.period)(day)) {
            return None;
        }
        self.current = Some((self.period)(day));
        self.seen += 1;
        Some((self.reason)(self.count))
    }
}

/// Year and month (0 to 11) of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
/// Source: Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn month_of(day: i64) -> (i64, i64) {
    let day = day + 719_468;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * day_of_year + 2) / 153;
    let month = (march_based + 2) % 12;
    (year_of_era + era * 400 + i64::from(month <= 1), month)
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let one = |problem: String| PolicyError { problems: vec![problem] };
        let value: Value = serde_json::from_str(text).map_err(|error| one(format!("not valid JSON: {error}")))?;
        let fields = value.as_object().ok_or_else(|| one("not a JSON object".to_owned()))?;
        let mut problems: Vec<String> =
            fields.keys().filter(|name| *name != "rules").map(|name| format!("unknown field {name:?}")).collect();
        let rules = match fields.get("rules").and_then(Value::as_array) {
            Some(rules) if !rules.is_empty() => rules.as_slice(),
            _ => {
                problems.push("rules is not a list of at least one rule".to_owned());
                &[]
            }
        };
        let rules: Vec<Rule> =
            rules.iter().enumerate().map(|(index, rule)| read_rule(index + 1, rule, &mut problems)).collect();
        let readable = problems.is_empty();
        for (index, rule) in rules.iter().enumerate() {
            let earlier = rules[..index].iter().position(|earlier| earlier.covers(rule));
            // A rule that could not be read fits everything.
            if let Some(earlier) = earlier.filter(|_| readable) {
                problems.push(format!("rule {} never applies: rule {} fits all it fits", index + 1, earlier + 1));
            }
        }
        if problems.is_empty() { Ok(Self { rules }) } else { Err(PolicyError { problems }) }
    }
}

fn read_rule(number: usize, value: &Value, problems: &mut Vec<String>) -> Rule {
    let Some(fields) = value.as_object() else {
        problems.push(format!("rule {number} is not a JSON object"));
        return Rule::default();
    };
    let before = problems.len();
    for unknown in fields.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
        problems.push(format!("rule {number}: unknown field {unknown:?} (known: {})", FIELDS.join(", ")));
    }
    let mut reader = RuleReader { number, fields, problems };
    let rule = Rule {
        purposes: reader.list("purposes"),
        environments: reader.list("environments"),
        databases: reader.list("databases"),
        artifacts: reader.list("artifacts"),
        keep: Keep {
            last: reader.count("keep_last", MAX_COUNT),
            within_days: reader.count("keep_within_days", MAX_DAYS),
            daily: reader.count("keep_daily", MAX_COUNT),
            weekly: reader.count("keep_weekly", MAX_COUNT),
            monthly: reader.count("keep_monthly", MAX_COUNT),
            yearly: reader.count("keep_yearly", MAX_COUNT),
            forever: reader.flag("keep_forever"),
        },
    };
    if problems.len() == before && rule.keep.keeps_nothing() {
        problems.push(format!("rule {number} keeps nothing"));
    }
    rule
}

struct RuleReader<'a> {
    number: usize,
    fields: &'a Map<String, Value>,
    problems: &'a mut Vec<String>,
}

impl RuleReader<'_> {
    fn problem(&mut self, name: &str, problem: impl fmt::Display) {
        self.problems.push(format!("rule {}: {name}: {problem}", self.number));
    }

    fn count(&mut self, name: &str, most: u64) -> u64 {
        match self.fields.get(name) {
            None => 0,
            Some(value) => value.as_u64().filter(|count| *count <= most).unwrap_or_else(|| {
                self.problem(name, format_args!("{value} is not a whole number from 0 to {most}"));
                0
            }),
        }
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.fields.get(name) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.problem(name, format_args!("{other} is not true or false"));
                false
            }
        }
    }

    fn list<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Vec<T> {
        let Some(value) = self.fields.get(name) else { return Vec::new() };
        let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
            self.problem(name, format_args!("{value} is not a list of at least one name"));
            return Vec::new();
        };
        let mut list = Vec::new();
        for item in items {
            match item.as_str().filter(|text| !text.is_empty()).map(str::parse) {
                Some(Ok(parsed)) => list.push(parsed),
                Some(Err(error)) => self.problem(name, error),
                None => self.problem(name, format_args!("{item} is not a name")),
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        text.parse::<Policy>().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_the_documented_one() {
        let policy: Policy = DEFAULT_POLICY.parse().unwrap();
        let production: Environment = "production".parse().unwrap();
        let keep = |purpose| policy.rule_for(&production, "shop", purpose, ArtifactKind::Dump).unwrap().1.keep;
        assert_eq!(keep("daily_backup"), Keep { last: 30, ..Keep::default() });
        assert_eq!(keep("testing"), Keep { within_days: 7, ..Keep::default() });
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_told() {
        for (text, expected) in [
            ("keep 30", "not valid JSON"),
            ("[]", "not a JSON object"),
            ("{}", "at least one rule"),
            (r#"{"rules":[]}"#, "at least one rule"),
            (r#"{"rules":[{"keep_last":30}],"dry_run":true}"#, "unknown field \"dry_run\""),
            (r#"{"rules":[{}]}"#, "rule 1 keeps nothing"),
            (r#"{"rules":[{"keep_last":0,"keep_within_days":0,"keep_forever":false}]}"#, "rule 1 keeps nothing"),
            (r#"{"rules":[{"purposes":["testing"]}]}"#, "rule 1 keeps nothing"),
            (r#"{"rules":[{"keep_latest":3}]}"#, "unknown field \"keep_latest\" (known: purposes,"),
            (r#"{"rules":[{"keep_last":-1}]}"#, "keep_last: -1 is not a whole number"),
            (r#"{"rules":[{"keep_last":1.5}]}"#, "keep_last: 1.5"),
            (r#"{"rules":[{"keep_last":"30"}]}"#, "keep_last: \"30\""),
            (r#"{"rules":[{"keep_within_days":36501}]}"#, "0 to 36500"),
            (r#"{"rules":[{"keep_forever":1}]}"#, "true or false"),
            (r#"{"rules":[{"keep_last":1,"artifacts":["dumps"]}]}"#, "\"dumps\" is not a kind of artifact"),
            (r#"{"rules":[{"keep_last":1,"environments":["Prod"]}]}"#, "\"Prod\" is not an environment"),
            (r#"{"rules":[{"keep_last":1,"databases":[]}]}"#, "at least one name"),
            (r#"{"rules":[{"keep_last":1,"databases":[""]}]}"#, "not a name"),
            (r#"{"rules":[7]}"#, "rule 1 is not a JSON object"),
            (r#"{"rules":[{"keep_last":1},{"purposes":["testing"],"keep_last":2}]}"#, "rule 2 never applies"),
        ] {
            assert!(problems(text).contains(expected), "{text}: {}", problems(text));
        }
        let all = problems(r#"{"rules":[{"keep_last":-1,"keep_never":1},{"artifacts":[3],"keep_daily":true}],"x":1}"#);
        assert_eq!(all.split("; ").count(), 5, "{all}");
    }

    #[test]
    fn days_fall_into_the_calendars_months() {
        for (date, expected) in [
            ("1970-01-01", (1970, 0)),
            ("1969-12-31", (1969, 11)),
            ("2000-02-29", (2000, 1)),
            ("2000-03-01", (2000, 2)),
            ("2100-02-28", (2100, 1)),
            ("2024-12-31", (2024, 11)),
        ] {
            let at: Timestamp = format!("{date}T12:00:00Z").parse().unwrap();
            assert_eq!(month_of(at.as_second().div_euclid(SECONDS_A_DAY)), expected, "{date}");
        }
    }

    /// Days of 2024 and 2025 around new year, newest first; which a rule keeps.
    fn kept(rule: &str, days: &[&str]) -> Vec<String> {
        let policy: Policy = format!(r#"{{"rules":[{{{rule}}}]}}"#).parse().unwrap();
        let at = |day: &str| -> Timestamp { format!("{day}:00:00Z").parse().unwrap() };
        let backups: Vec<(Timestamp, bool)> = days.iter().map(|day| (at(day), true)).collect();
        let reasons = policy.rules[0].keep.reasons(&backups, at("2025-01-07T00"));
        days.iter().zip(reasons).filter(|(_, reasons)| !reasons.is_empty()).map(|(day, _)| (*day).to_owned()).collect()
    }

    #[test]
    fn each_condition_keeps_what_it_says() {
        // Monday 2024-12-30 begins ISO week 1 of 2025.
        const DAYS: [&str; 8] = [
            "2025-01-06T22", // Monday
            "2025-01-06T02",
            "2025-01-05T02", // Sunday of the week of 2024-12-30
            "2024-12-30T02", // Monday
            "2024-12-29T02", // Sunday of the week before
            "2024-12-01T02",
            "2024-11-30T02",
            "2023-05-05T02",
        ];
        for (rule, expected) in [
            (r#""keep_last":3"#, vec![0, 1, 2]),
            (r#""keep_within_days":2"#, vec![0, 1, 2]),
            (r#""keep_daily":3"#, vec![0, 2, 3]),
            (r#""keep_weekly":3"#, vec![0, 2, 4]),
            (r#""keep_monthly":3"#, vec![0, 3, 6]),
            (r#""keep_yearly":5"#, vec![0, 3, 7]),
            (r#""keep_last":1,"keep_weekly":2,"keep_yearly":3"#, vec![0, 2, 3, 7]),
            (r#""keep_forever":true"#, vec![0, 1, 2, 3, 4, 5, 6, 7]),
        ] {
            let expected: Vec<&str> = expected.into_iter().map(|index| DAYS[index]).collect();
            assert_eq!(kept(rule, &DAYS), expected, "{rule}");
        }
    }

    #[test]
    fn what_does_not_count_pushes_nothing_out() {
        let keep = Keep { last: 2, daily: 2, ..Keep::default() };
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let backups = [(at(300), false), (at(200), true), (at(150), false), (at(100), true), (at(50), true)];
        let kept: Vec<bool> = keep.reasons(&backups, at(400)).iter().map(|reasons| !reasons.is_empty()).collect();
        assert_eq!(kept, [true, true, true, true, false]);
    }
}
