//! Whether an archived dump may be thawed for a restore that goes on when it has: hours later, and by itself.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Facts, Options, Refusal, Restore, Source, Tier, export_in_vain, refusals};

/// How long an approved restore may be waited for: the slowest thaw takes two days.
pub const APPROVAL_LASTS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long S3 keeps a thawed copy: longer than from one poll to the next, by far.
pub const COPY_DAYS: i32 = 3;

/// Storage that has to be thawed before it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Archive {
    /// GLACIER, and the Archive Access tier of INTELLIGENT_TIERING.
    Flexible,
    /// DEEP_ARCHIVE, and the Deep Archive Access tier of INTELLIGENT_TIERING.
    Deep,
}

impl Archive {
    /// How long thawing takes, as a rule and at most (Amazon S3 User Guide, "Archive retrieval options"); `None`
    /// where the tier does not exist.
    pub fn thaws_within(self, tier: Tier) -> Option<(SignedDuration, SignedDuration)> {
        let minutes = match (self, tier) {
            (Self::Flexible, Tier::Expedited) => (1, 5),
            (Self::Flexible, Tier::Standard) => (3 * 60, 5 * 60),
            (Self::Flexible, Tier::Bulk) => (5 * 60, 12 * 60),
            (Self::Deep, Tier::Expedited) => return None,
            (Self::Deep, Tier::Standard) => (9 * 60, 12 * 60),
            (Self::Deep, Tier::Bulk) => (24 * 60, 48 * 60),
        };
        Some((SignedDuration::from_mins(minutes.0), SignedDuration::from_mins(minutes.1)))
    }
}

/// The right to have one dump thawed, and to restore it once it is: everything was seen that can be seen before.
///
/// As with [`super::Clearance`], only [`approve`] makes one. It does not open the engine: when the dump has thawed, the
/// server, the names and the safety backup are looked at again.
#[derive(Debug)]
#[must_use = "a restore was approved and nothing is thawed"]
pub struct Approval {
    restore: Restore,
    options: Options,
    source: Source,
    expected: SignedDuration,
    granted_at: Timestamp,
}

impl Approval {
    pub fn restore(&self) -> &Restore {
        &self.restore
    }

    pub fn options(&self) -> Options {
        self.options
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The longest that thawing is said to take.
    pub fn expected(&self) -> SignedDuration {
        self.expected
    }

    pub fn granted_at(&self) -> Timestamp {
        self.granted_at
    }

    pub fn expires(&self) -> Timestamp {
        self.granted_at + APPROVAL_LASTS
    }
}

/// Allows a dump to be thawed, or says everything that is against it.
///
/// `takes_safety_backup`: the restore takes one itself when it goes on. One from now would be hours old by then.
///
/// # Errors
/// All refusals, the weightiest first.
pub fn approve(facts: Facts, archive: Archive, takes_safety_backup: bool) -> Result<Approval, Vec<Refusal>> {
    let refusals = thaw_refusals(&facts, archive, takes_safety_backup);
    match archive.thaws_within(facts.options.tier) {
        Some((_, expected)) if refusals.is_empty() => Ok(Approval {
            restore: facts.restore,
            options: facts.options,
            source: facts.source,
            expected,
            granted_at: facts.now,
        }),
        _ => Err(refusals),
    }
}

/// What is against a restore whose dump has to be thawed; empty where nothing is.
pub fn thaw_refusals(facts: &Facts, archive: Archive, takes_safety_backup: bool) -> Vec<Refusal> {
    let mut refusals = refusals(facts);
    refusals.retain(|refusal| !matches!(refusal, Refusal::SafetyBackupMissing { .. }));
    if facts.restore.changes_existing_data() {
        let in_vain = export_in_vain(facts);
        if !takes_safety_backup || in_vain.is_some() {
            let database = facts.restore.target().to_owned();
            refusals.push(Refusal::ThawWithoutSafetyBackup { database, in_vain });
        }
    }
    if archive.thaws_within(facts.options.tier).is_none() {
        refusals.push(Refusal::TierUnavailable);
    }
    refusals
}
