//! Databases that a swap or an undo has put aside: which may be dropped by now.

use jiff::Timestamp;

use crate::domain::put_aside::Exchange;
use crate::domain::{BackupId, PutAside};

/// A database of the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub name: String,
    pub comment: Option<String>,
    pub sessions: i64,
    /// The role that looks may drop it.
    pub ours: bool,
}

/// A database that may be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Doomed {
    pub name: String,
    pub keep_until: Timestamp,
    /// As it was read: it is dropped with this note, or not at all.
    pub comment: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDatabase {
    pub name: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatabasePlan {
    pub drop: Vec<Doomed>,
    pub keep: Vec<KeptDatabase>,
}

/// Drops what has both the name and the note of a database put aside, and whose time has passed. All others are none
/// of ours, `live` in the first place, whatever a swap back has left written on it.
pub fn plan_databases(found: &[Found], live: &str, now: Timestamp) -> DatabasePlan {
    let mut plan = DatabasePlan::default();
    for database in found {
        let Some(what) = put_aside_as(&database.name).filter(|_| database.name != live) else { continue };
        match verdict(database, what, now) {
            Ok(doomed) => plan.drop.push(doomed),
            Err(reason) => plan.keep.push(KeptDatabase { name: database.name.clone(), reason }),
        }
    }
    plan.drop.sort_by(|a, b| a.name.cmp(&b.name));
    plan.keep.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}

/// What the note of a database with this name has to say; `None` for a name that no restore gives.
fn put_aside_as(name: &str) -> Option<Exchange> {
    [("_before_", Exchange::Replaced), ("_undone_", Exchange::Undone)].into_iter().find_map(|(infix, what)| {
        let (database, id) = name.rsplit_once(infix)?;
        id.parse::<BackupId>().ok().filter(|_| !database.is_empty()).map(|_| what)
    })
}

fn verdict(database: &Found, what: Exchange, now: Timestamp) -> Result<Doomed, String> {
    let comment = database.comment.clone().unwrap_or_default();
    let note = PutAside::parse(&comment).ok_or_else(|| "it has no note of a restore".to_owned())?;
    if note.by != what {
        return Err(format!("its note says {:?}, which does not go with its name", note.by.as_str()));
    }
    let Some(keep_until) = note.keep_until else { return Err("it is kept until it is dropped by hand".to_owned()) };
    if note.at > now {
        return Err(format!("it was put aside at {}, and that is to come: the clock is behind", note.at));
    }
    if keep_until > now {
        return Err(format!("it is kept until {keep_until}"));
    }
    if !database.ours {
        return Err("it belongs to another role".to_owned());
    }
    if database.sessions > 0 {
        return Err(format!("its time has passed, and {} sessions are in it", database.sessions));
    }
    Ok(Doomed { name: database.name.clone(), keep_until, comment })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(what: &str, keep_until: &str) -> String {
        format!(
            r#"{{"holdfast":"{what}","by_backup":"20250601-020000","at":"2025-06-01T03:00:00Z","keep_until":{keep_until}}}"#
        )
    }

    #[test]
    fn only_what_a_restore_has_put_aside_and_whose_time_has_passed_is_dropped() {
        let now: Timestamp = "2025-06-21T14:30:00Z".parse().unwrap();
        let past = "\"2025-06-08T03:00:00Z\"";
        let found =
            |name: &str, comment: String| Found { name: name.into(), comment: Some(comment), sessions: 0, ours: true };
        let verdict = |found: Found| {
            let plan = plan_databases(&[found], "shop", now);
            match (plan.drop.as_slice(), plan.keep.as_slice()) {
                ([doomed], []) => format!("drop {}", doomed.keep_until),
                ([], [kept]) => kept.reason.clone(),
                _ => "nobody's".to_owned(),
            }
        };
        let aside = "shop_before_20250601-020000";
        for (found, expected) in [
            (found(aside, note("replaced", past)), "drop 2025-06-08T03:00:00Z"),
            (found("shop_undone_20250601-020000", note("undone", past)), "drop 2025-06-08T03:00:00Z"),
            (found(aside, note("replaced", "\"2025-06-21T14:30:01Z\"")), "it is kept until 2025-06-21T14:30:01Z"),
            (found(aside, note("replaced", "null")), "it is kept until it is dropped by hand"),
            (found(aside, note("undone", past)), "its note says \"undone\", which does not go with its name"),
            (found(aside, "a copy for Ann".into()), "it has no note of a restore"),
            (Found { comment: None, ..found(aside, String::new()) }, "it has no note of a restore"),
            (Found { ours: false, ..found(aside, note("replaced", past)) }, "it belongs to another role"),
            (
                Found { sessions: 2, ..found(aside, note("replaced", past)) },
                "its time has passed, and 2 sessions are in it",
            ),
            // What a swap back has left written on the live one, and names of others.
            (found("shop", note("replaced", past)), "nobody's"),
            (found("shop_before_christmas", note("replaced", past)), "nobody's"),
            (found("_before_20250601-020000", note("replaced", past)), "nobody's"),
            (found("shop_20250601-020000", note("replaced", past)), "nobody's"),
        ] {
            assert_eq!(verdict(found.clone()), expected, "{found:?}");
        }
        let live = plan_databases(&[found(aside, note("replaced", past))], aside, now);
        assert_eq!(live, DatabasePlan::default());
        let early: Timestamp = "2025-05-01T00:00:00Z".parse().unwrap();
        let behind = plan_databases(&[found(aside, note("replaced", "\"2025-04-01T00:00:00Z\""))], "shop", early);
        assert!(behind.drop.is_empty() && behind.keep[0].reason.contains("the clock is behind"), "{behind:?}");
    }
}
