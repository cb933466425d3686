//! What a restore that is done is answered with: the engine's receipt, what it is of, and what can be done next.

use holdfast_shared::domain::BackupId;
use holdfast_shared::fault::Fault;
use holdfast_shared::plan::clearance::{Clearance, Restore, Source, passed_over};
use restore_trigger::engine::Receipt;
use serde_json::{Value, json};

/// What the answer says beside the receipt.
pub struct About {
    restore: Restore,
    source: Value,
    /// Beside those of the receipt.
    notes: Vec<String>,
    safety_backup: Option<BackupId>,
    keep_previous_days: Option<u32>,
}

impl About {
    pub fn of(clearance: &Clearance) -> Self {
        let source = match clearance.source() {
            Source::Backup(manifest) => {
                json!({"backup": manifest.timestamp, "backup_environment": manifest.environment})
            }
            Source::Import { name, .. } => json!({"import": name.to_string()}),
            Source::Previous | Source::Rds(_) => match clearance.restore() {
                Restore::Undo { previous, put_aside, .. } => json!({"came_back": previous, "put_aside": put_aside}),
                _ => json!({}),
            },
        };
        let notes = clearance.target().and_then(|server| passed_over(clearance.restore(), server));
        Self {
            restore: clearance.restore().clone(),
            source,
            notes: notes.into_iter().collect(),
            safety_backup: clearance.safety_backup(),
            keep_previous_days: clearance.options().keep_previous_days,
        }
    }

    pub fn answer(&self, receipt: &Receipt) -> Result<Value, Fault> {
        let mut answer = json!({"status": "complete", "mode": self.restore.mode()});
        let receipt = Receipt { notes: [receipt.notes.as_slice(), &self.notes].concat(), ..receipt.clone() };
        let mut done = serde_json::to_value(receipt).map_err(|error| Fault::from_error("internal", &error))?;
        if let (Restore::Undo { .. }, Some(done)) = (&self.restore, done.as_object_mut()) {
            // Two names were changed, and nothing was read or loaded.
            done.retain(|field, _| ["database", "previous", "notes"].contains(&field.as_str()));
        }
        let ends = json!({"safety_backup": self.safety_backup, "next": self.next()});
        for part in [&self.source, &done, &ends] {
            for (field, value) in part.as_object().into_iter().flatten() {
                answer[field.as_str()] = value.clone();
            }
        }
        if self.safety_backup.is_none()
            && let Some(answer) = answer.as_object_mut()
        {
            answer.remove("safety_backup");
        }
        Ok(answer)
    }

    fn next(&self) -> String {
        match &self.restore {
            Restore::NewDatabase { database } => {
                format!("connect to {database}; nothing that existed was changed, and it is yours to drop")
            }
            Restore::Swap { database, previous, .. } => {
                let kept = self.keep_previous_days.map_or_else(
                    || "until somebody drops it".to_owned(),
                    |days| format!("for {days} days, after which retention may drop it"),
                );
                format!(
                    "applications that connect to {database} see the backup; what it was is {previous}, kept {kept}; mode undo takes it back"
                )
            }
            Restore::TablesIntoSchema { database, schema, .. } => format!(
                "the tables are in schema {schema} of {database}: compare or copy from there, then DROP SCHEMA; live tables were not touched"
            ),
            Restore::TablesInPlace { .. } => match self.safety_backup {
                Some(id) => format!(
                    "the rows are committed; backup {id} has what it found in their place, and the same mode takes that back"
                ),
                None => "the rows are committed".to_owned(),
            },
            Restore::Undo { database, put_aside, aside, .. } => {
                let of = put_aside.map_or_else(String::new, |at| format!(" of {at}"));
                format!(
                    "{database} is what it was before the swap{of}; what the swap had put in place is {aside}, yours to drop"
                )
            }
            Restore::Verify { .. } => {
                "the backup is proved, and its manifest says so; the database made for it is dropped".to_owned()
            }
            Restore::RdsSnapshot { .. } | Restore::RdsPointInTime { .. } => "connect to the endpoint".to_owned(),
        }
    }
}
