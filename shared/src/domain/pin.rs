//! A pin: a small object that says a backup is in use, so that retention leaves its data alone.
//!
//! Whoever reads a backup writes its pin first and reads the manifest after; retention writes the tombstone first
//! and reads the pins after. Whichever comes second sees the other.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::BackupId;

/// What lies at `pins/{backup id}/{request id}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub backup_id: BackupId,
    /// Lambda's request id of the invocation that holds it, or a name of the operator's for a pin set by hand.
    pub request_id: String,
    /// What it is held for, such as `restore` or `hold`.
    pub purpose: String,
    /// When it ends by itself; `null` holds until it is released.
    #[serde(default)]
    pub expires: Option<Timestamp>,
    #[serde(default)]
    pub released: bool,
}

impl Pin {
    pub fn is_active(&self, now: Timestamp) -> bool {
        !self.released && self.expires.is_none_or(|expires| expires > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_until_it_expires_or_is_released() {
        let now: Timestamp = "2025-06-21T14:30:00Z".parse().unwrap();
        let pin = |rest: &str| -> Pin {
            let head = r#""backup_id":"20250621-020000","request_id":"r","purpose":"restore""#;
            serde_json::from_str(&format!("{{{head}{rest}}}")).unwrap()
        };
        for (rest, active) in [
            ("", true),
            (r#","expires":null,"released":false"#, true),
            (r#","expires":"2025-06-21T14:30:01Z""#, true),
            (r#","expires":"2025-06-21T14:30:00Z""#, false),
            (r#","released":true"#, false),
        ] {
            assert_eq!(pin(rest).is_active(now), active, "{rest}");
        }
    }
}
