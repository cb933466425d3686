//! How a manifest becomes a tombstone: edited as the JSON it is, so that what this release does not know stays in it.
//!
//! An expired artifact moves from `artifacts` to `expired_artifacts`, with when and why; once its data is gone it says
//! that as well (`done`). A backup without artifacts is `expired`.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::domain::ArtifactKind;

const ARTIFACTS: &str = "artifacts";
const EXPIRED: &str = "expired_artifacts";

/// What the tombstone says of the decision.
#[derive(Debug, Clone, Copy)]
pub struct Epitaph<'a> {
    pub reason: &'a str,
    /// Lambda's request id.
    pub by: &'a str,
    pub forced: bool,
    pub at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum TombstoneError {
    #[error("the manifest is not a JSON object")]
    NotAnObject,
    #[error("the manifest lists no {kind}")]
    NoSuchArtifact { kind: ArtifactKind },
}

/// The manifest in which these artifacts are expired.
pub fn expire(manifest: &[u8], kinds: &[ArtifactKind], epitaph: Epitaph<'_>) -> Result<String, TombstoneError> {
    let mut fields = object(manifest)?;
    for kind in kinds {
        let name = kind.as_str();
        let live = part(&mut fields, ARTIFACTS).shift_remove(name);
        let artifact = live.or_else(|| part(&mut fields, EXPIRED).get(name).cloned());
        let mut artifact = artifact.ok_or(TombstoneError::NoSuchArtifact { kind: *kind })?;
        artifact["expired"] =
            json!({"at": epitaph.at, "reason": epitaph.reason, "by": epitaph.by, "forced": epitaph.forced});
        part(&mut fields, EXPIRED).insert(name.to_owned(), artifact);
    }
    if part(&mut fields, ARTIFACTS).is_empty() {
        fields.insert("state".to_owned(), json!("expired"));
    }
    Ok(render(fields))
}

/// The manifest that says that the data of these expired artifacts is gone.
pub fn done(manifest: &[u8], kinds: &[ArtifactKind], at: Timestamp) -> Result<String, TombstoneError> {
    let mut fields = object(manifest)?;
    for kind in kinds {
        let artifact = part(&mut fields, EXPIRED).get_mut(kind.as_str());
        let expired = artifact.and_then(|artifact| artifact.get_mut("expired")).filter(|expired| expired.is_object());
        expired.ok_or(TombstoneError::NoSuchArtifact { kind: *kind })?["done"] = json!(at);
    }
    Ok(render(fields))
}

fn object(manifest: &[u8]) -> Result<Map<String, Value>, TombstoneError> {
    serde_json::from_slice(manifest).map_err(|_| TombstoneError::NotAnObject)
}

/// The object in this field; made where there is none.
fn part<'a>(fields: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = fields.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it has just been made one"),
    }
}

fn render(fields: Map<String, Value>) -> String {
    let mut text = serde_json::to_string_pretty(&Value::Object(fields)).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "2025-07-21T14:30:00Z";

    fn manifest() -> Value {
        json!({"timestamp": "20250621-143000", "future": {"b": 1, "a": [2]}, "state": "complete",
               "artifacts": {"dump": {"key": "d", "size_bytes": 3}, "raw": {"key": "r"}, "sql": {"key": "s"}}})
    }

    fn expired(manifest: &Value, kinds: &[ArtifactKind]) -> Value {
        let epitaph = Epitaph { reason: "old", by: "r-1", forced: false, at: AT.parse().unwrap() };
        serde_json::from_str(&expire(manifest.to_string().as_bytes(), kinds, epitaph).unwrap()).unwrap()
    }

    #[test]
    fn artifacts_move_and_all_else_stays() {
        let part = expired(&manifest(), &[ArtifactKind::Raw]);
        assert_eq!(part["state"], "complete");
        assert_eq!(part["artifacts"], json!({"dump": {"key": "d", "size_bytes": 3}, "sql": {"key": "s"}}));
        let told = json!({"key": "r", "expired": {"at": AT, "reason": "old", "by": "r-1", "forced": false}});
        assert_eq!(part["expired_artifacts"]["raw"], told);
        assert_eq!((&part["future"], &part["timestamp"]), (&manifest()["future"], &manifest()["timestamp"]));

        let whole = expired(&part, &[ArtifactKind::Dump, ArtifactKind::Sql]);
        assert_eq!((&whole["state"], &whole["artifacts"]), (&json!("expired"), &json!({})));
        assert_eq!(whole["expired_artifacts"].as_object().unwrap().len(), 3);
    }

    #[test]
    fn done_is_told_of_what_was_expired_only() {
        let tombstone = expired(&manifest(), &[ArtifactKind::Raw]).to_string();
        let at = AT.parse().unwrap();
        let finished: Value =
            serde_json::from_str(&done(tombstone.as_bytes(), &[ArtifactKind::Raw], at).unwrap()).unwrap();
        assert_eq!(finished["expired_artifacts"]["raw"]["expired"]["done"], AT);
        assert!(done(tombstone.as_bytes(), &[ArtifactKind::Dump], at).is_err());
        assert!(done(b"[]", &[], at).is_err());
    }

    #[test]
    fn what_is_not_listed_cannot_expire() {
        let epitaph = Epitaph { reason: "", by: "", forced: false, at: AT.parse().unwrap() };
        let error = expire(manifest().to_string().as_bytes(), &[ArtifactKind::Mongodb], epitaph).unwrap_err();
        assert!(matches!(error, TombstoneError::NoSuchArtifact { kind: ArtifactKind::Mongodb }));
    }
}
