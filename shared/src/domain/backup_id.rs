//! The name of a backup: its UTC second, so that ids sort by time.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

const FORMAT: &str = "%Y%m%d-%H%M%S";

/// A backup id, `YYYYMMDD-HHMMSS` in UTC.
///
/// Scheduled runs take it from the event's scheduled time, so that a retried event meets its own id;
/// on-demand runs take it from the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BackupId(Timestamp);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a backup id (YYYYMMDD-HHMMSS, UTC)")]
pub struct BackupIdError {
    pub text: String,
}

impl BackupId {
    /// The id of the second that holds `at`.
    pub fn from_timestamp(at: Timestamp) -> Self {
        Self(Timestamp::from_second(at.as_second()).unwrap_or(at))
    }

    /// The second the id names.
    pub fn timestamp(self) -> Timestamp {
        self.0
    }

    /// The following second's id: where two runs would share one, the later run moves on.
    pub fn next(self) -> Self {
        Self(self.0 + jiff::SignedDuration::from_secs(1))
    }

    /// `YYYY-MM-DD` in UTC, the folder that artifacts are filed under.
    pub fn date(self) -> String {
        self.civil().strftime("%Y-%m-%d").to_string()
    }

    fn civil(self) -> DateTime {
        self.0.to_zoned(TimeZone::UTC).datetime()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.civil().strftime(FORMAT))
    }
}

impl FromStr for BackupId {
    type Err = BackupIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || BackupIdError { text: text.to_owned() };
        let shaped = text.len() == 15
            && text.bytes().enumerate().all(|(i, b)| if i == 8 { b == b'-' } else { b.is_ascii_digit() });
        if !shaped {
            return Err(error());
        }
        let civil = DateTime::strptime(FORMAT, text).map_err(|_| error())?;
        let zoned = civil.to_zoned(TimeZone::UTC).map_err(|_| error())?;
        let id = Self(zoned.timestamp());
        // A leap second (…60) parses to the second before it: refuse what does not render back.
        if id.to_string() == text { Ok(id) } else { Err(error()) }
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for BackupId {
    type Error = BackupIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn renders_the_utc_second() {
        let at: Timestamp = "2025-06-21T14:30:00.987Z".parse().unwrap();
        let id = BackupId::from_timestamp(at);
        assert_eq!(id.to_string(), "20250621-143000");
        assert_eq!(id.date(), "2025-06-21");
        assert_eq!(id.next().to_string(), "20250621-143001");
    }

    #[test]
    fn refuses_what_is_not_an_id() {
        for text in [
            "",
            "20250621",
            "20250621-1430",
            "20250631-143000",
            "20250621_143000",
            "20250621-246000",
            "20250621-143060",
            "+0250621-143000",
            "20250621-143000 ",
            "../20250621-1430",
        ] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_the_inverse_of_rendering(second in 0i64..4_102_444_800) {
            let id = BackupId::from_timestamp(Timestamp::from_second(second).unwrap());
            prop_assert_eq!(id.to_string().parse::<BackupId>().unwrap(), id);
        }

        #[test]
        fn ids_sort_as_their_seconds(a in 0i64..4_102_444_800, b in 0i64..4_102_444_800) {
            let id = |s| BackupId::from_timestamp(Timestamp::from_second(s).unwrap());
            prop_assert_eq!(a.cmp(&b), id(a).to_string().cmp(&id(b).to_string()));
        }
    }
}
