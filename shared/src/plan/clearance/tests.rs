mod safety;
mod servers;
mod undo;

use proptest::prelude::*;

use super::*;
use crate::domain::Manifest;
use crate::domain::rds::{ServerSettings, Snapshot, SnapshotType};
use crate::plan::clearance::asked::{
    aside_name, new_database_name, previous_name, schema_name, scratch_name, shadow_name,
};

fn id() -> BackupId {
    "20250621-143000".parse().unwrap()
}

fn now() -> Timestamp {
    "2025-06-21T15:00:00Z".parse().unwrap()
}

fn manifest() -> Box<Manifest> {
    let json = serde_json::json!({
        "timestamp": "20250621-143000", "export_date": "2025-06-21",
        "source": {"type": "postgresql", "instance": "h", "database": "shop", "snapshot_id": "s"},
        "export_duration_minutes": 1, "export_complete": "2025-06-21T14:31:00Z", "manifest_version": 1,
        "state": "complete", "environment": "production", "purpose": "daily_backup", "created_by": "schedule",
        "event_key": "k",
        "server": {"version": "17.5", "major": 17, "system_identifier": "1", "wal_lsn": null, "role": "primary",
                   "encoding": "UTF8"},
        "artifacts": {"dump": {"key": "k", "size_bytes": 1, "compression": "none", "archive_version": "1.16",
                               "pg_restore_major": 17, "pg_dump_version": "17.5"}},
        "schema_fingerprint": "f",
        "durations_seconds": {"to_first_row": 0.1, "data": 1.0, "commit": 0.1, "total": 1.2},
        "verified": {"at": "2025-06-21T14:31:00Z", "by": "read-back"},
    });
    Box::new(Manifest::parse(json.to_string().as_bytes()).unwrap())
}

fn restores() -> [Restore; 8] {
    let shop = || "shop".to_owned();
    [
        Restore::NewDatabase { database: new_database_name("shop", id()) },
        Restore::Swap { database: shop(), shadow: shadow_name("shop", id()), previous: previous_name("shop", id()) },
        Restore::TablesIntoSchema {
            database: shop(),
            schema: schema_name(id()),
            tables: vec!["public.*".parse().unwrap()],
        },
        Restore::TablesInPlace { database: shop(), tables: vec!["public.*".parse().unwrap()] },
        Restore::Undo {
            database: shop(),
            previous: Some("shop_before_20250620-020000".into()),
            put_aside: Some("2025-06-20T03:00:00Z".parse().unwrap()),
            aside: aside_name("shop", id()),
        },
        Restore::Verify { scratch: scratch_name("shop", id()) },
        Restore::RdsSnapshot { snapshot: None, instance: "shop-2".into() },
        Restore::RdsPointInTime { moment: None, instance: "shop-2".into() },
    ]
}

fn rds(source: rds::RdsSource) -> Source {
    Source::Rds(Box::new(source))
}

fn rds_source() -> rds::RdsSource {
    rds::RdsSource {
        configured: Some("shop".parse().unwrap()),
        server: Some(rds::SourceServer {
            earliest_restorable: Some("2025-06-14T00:00:00Z".parse().unwrap()),
            latest_restorable: Some("2025-06-21T14:55:00Z".parse().unwrap()),
            settings: ServerSettings {
                subnet_group: Some("private".into()),
                security_groups: vec!["sg-1".into()],
                ..ServerSettings::default()
            },
            ..rds::SourceServer::default()
        }),
        snapshot: Some(Snapshot::of_shop("rds:shop-2025-06-21-02-00", SnapshotType::Automated)),
        ..rds::RdsSource::default()
    }
}

/// Facts under which `restore` may be done.
fn good(restore: Restore) -> Facts {
    Facts {
        source: match &restore {
            Restore::Undo { .. } => Source::Previous,
            Restore::RdsSnapshot { .. } | Restore::RdsPointInTime { .. } => rds(rds_source()),
            _ => Source::Backup(manifest()),
        },
        restore,
        options: Options::default(),
        passkey: Passkey::Accepted,
        environment: "production".parse().unwrap(),
        target: Some(TargetServer {
            version: "17.5".into(),
            major: 17,
            system_identifier: Some("1".into()),
            environment: None,
            in_recovery: false,
            databases: ["postgres", "shop", "shop_before_20250620-020000"].map(str::to_owned).into(),
            notes: BTreeMap::new(),
        }),
        configured_system_identifier: Some("1".into()),
        live_database: "shop".into(),
        export_function: true,
        safety_backup: Some(SafetyBackup {
            id: "20250621-145700".parse().unwrap(),
            environment: "production".parse().unwrap(),
            database: "shop".into(),
            system_identifier: Some("1".into()),
            standby: false,
            verified: true,
            whole: true,
            left_out: Vec::new(),
            completed: "2025-06-21T14:58:00Z".parse().unwrap(),
        }),
        safety_window: SignedDuration::from_mins(5),
        accepts_left_out: Vec::new(),
        now: now(),
    }
}

fn edit_manifest(facts: &mut Facts, edit: impl FnOnce(&mut Manifest)) {
    if let Source::Backup(manifest) = &mut facts.source {
        edit(manifest);
    }
}

fn edit_target(facts: &mut Facts, edit: impl FnOnce(&mut TargetServer)) {
    edit(facts.target.as_mut().unwrap());
}

fn edit_safety(facts: &mut Facts, edit: impl FnOnce(&mut SafetyBackup)) {
    edit(facts.safety_backup.as_mut().unwrap());
}

/// A rule: how it is broken, the code that says so, and the modes it is for.
struct Rule {
    code: &'static str,
    breaks: fn(&mut Facts),
    applies: fn(&Restore) -> bool,
}

fn passkey(restore: &Restore) -> bool {
    !matches!(restore, Restore::Verify { .. })
}

fn server(restore: &Restore) -> bool {
    !matches!(restore, Restore::RdsSnapshot { .. } | Restore::RdsPointInTime { .. })
}

fn live(restore: &Restore) -> bool {
    matches!(restore, Restore::Swap { .. } | Restore::TablesInPlace { .. } | Restore::Undo { .. })
}

fn from_backup(restore: &Restore) -> bool {
    server(restore) && !matches!(restore, Restore::Undo { .. })
}

fn existing(restore: &Restore) -> bool {
    live(restore) || matches!(restore, Restore::TablesIntoSchema { .. })
}

fn swap(restore: &Restore) -> bool {
    matches!(restore, Restore::Swap { .. })
}

fn rules() -> Vec<Rule> {
    let rule = |code, applies, breaks| Rule { code, breaks, applies };
    vec![
        rule("restore-passkey-not-configured", passkey, |f| f.passkey = Passkey::NotConfigured),
        rule("restore-passkey-missing", passkey, |f| f.passkey = Passkey::Missing),
        rule("restore-passkey-rejected", passkey, |f| f.passkey = Passkey::Rejected),
        rule("restore-locked-out", passkey, |f| f.passkey = Passkey::LockedOut { until: now() }),
        rule(
            "restore-source-unfit",
            |_| true,
            |f| {
                f.source = if matches!(f.source, Source::Rds(_)) { Source::Previous } else { rds(rds_source()) };
            },
        ),
        rule(
            "restore-source-unfit",
            |r| matches!(r, Restore::Verify { .. }),
            |f| {
                f.source = Source::Import { name: "x".parse().unwrap(), size_bytes: 1, version_id: None };
            },
        ),
        rule("backup-expired", from_backup, |f| edit_manifest(f, |m| m.state = State::Expired)),
        rule(
            "restore-backup-not-verified",
            |r| from_backup(r) && passkey(r),
            |f| {
                edit_manifest(f, |m| m.verified = None);
            },
        ),
        rule("restore-backup-without-dump", from_backup, |f| edit_manifest(f, |m| m.artifacts.clear())),
        rule("restore-backup-partial", swap, |f| {
            edit_manifest(f, |m| m.selection.include = vec!["public.a".parse().unwrap()]);
        }),
        rule("restore-backup-partial", swap, |f| {
            edit_manifest(f, |m| m.selection.exclude_data = vec!["public.a".parse().unwrap()]);
        }),
        rule("restore-target-unknown", server, |f| f.target = None),
        rule("restore-server-not-configured", server, |f| f.configured_system_identifier = None),
        rule("restore-server-unidentified", server, |f| edit_target(f, |t| t.system_identifier = None)),
        rule("restore-wrong-server", server, |f| f.configured_system_identifier = Some("2".into())),
        rule("restore-wrong-environment", server, |f| {
            edit_target(f, |t| t.environment = Some("staging".into()));
        }),
        rule("restore-wrong-environment", from_backup, |f| {
            edit_manifest(f, |m| m.environment = "staging".parse().unwrap());
        }),
        rule("restore-target-standby", server, |f| edit_target(f, |t| t.in_recovery = true)),
        rule("restore-target-missing", existing, |f| {
            edit_target(f, |t| {
                t.databases.remove("shop");
            });
        }),
        rule(
            "restore-target-exists",
            |r| !r.created().is_empty(),
            |f| {
                let name = f.restore.created().first().map(|name| (*name).to_owned()).unwrap();
                edit_target(f, |t| {
                    t.databases.insert(name);
                });
            },
        ),
        rule("restore-target-exists", swap, |f| {
            edit_target(f, |t| {
                t.databases.insert("shop_before_20250621-143000".into());
            });
        }),
        rule(
            "restore-nothing-to-undo",
            |r| matches!(r, Restore::Undo { .. }),
            |f| {
                if let Restore::Undo { previous, .. } = &mut f.restore {
                    *previous = None;
                }
            },
        ),
        rule("restore-safety-backup-missing", live, |f| f.safety_backup = None),
        rule("restore-safety-backup-missing", live, |f| edit_safety(f, |s| s.verified = false)),
        rule("restore-safety-backup-missing", live, |f| edit_safety(f, |s| s.whole = false)),
        rule("restore-safety-backup-missing", live, |f| edit_safety(f, |s| s.standby = true)),
        rule(
            "restore-safety-backup-missing",
            |r| live(r) && !matches!(r, Restore::Undo { .. }),
            |f| edit_safety(f, |s| s.left_out = vec!["public.logs".parse().unwrap()]),
        ),
        rule("restore-safety-backup-missing", live, |f| edit_safety(f, |s| s.database = "other".into())),
        rule("restore-safety-backup-missing", live, |f| {
            edit_safety(f, |s| s.environment = "staging".parse().unwrap());
        }),
        rule("restore-safety-backup-missing", live, |f| edit_safety(f, |s| s.system_identifier = None)),
        rule("restore-safety-backup-missing", live, |f| {
            edit_safety(f, |s| s.completed = now() - SignedDuration::from_secs(301));
        }),
        rule("restore-safety-backup-missing", live, |f| {
            edit_safety(f, |s| s.completed = now() + SignedDuration::from_secs(61));
        }),
    ]
}

fn codes(facts: Facts) -> Vec<&'static str> {
    clear(facts).map_or_else(|refusals| refusals.iter().map(Refusal::code).collect(), |_| Vec::new())
}

#[test]
fn what_no_rule_is_against_may_be_done() {
    for restore in restores() {
        let clearance = clear(good(restore.clone())).unwrap();
        assert_eq!(clearance.restore(), &restore);
        assert_eq!(clearance.safety_backup().is_some(), live(&restore), "{restore:?}");
    }
}

#[test]
fn each_rule_alone_refuses_with_its_own_code() {
    for restore in restores() {
        for (number, rule) in rules().iter().enumerate() {
            let mut facts = good(restore.clone());
            let applies = (rule.applies)(&restore);
            if applies {
                (rule.breaks)(&mut facts);
                assert!(codes(facts).contains(&rule.code), "{number} {} {restore:?}", rule.code);
            }
        }
    }
}

#[test]
fn names_are_checked_before_they_are_used() {
    let long = "x".repeat(50);
    let facts = |restore| {
        let mut facts = good(restore);
        edit_target(&mut facts, |t| t.databases.insert("x".repeat(50)).then_some(()).unwrap());
        codes(facts)
    };
    for name in ["", "a\nb", &"x".repeat(64), &"é".repeat(32)] {
        assert!(facts(Restore::NewDatabase { database: name.into() }).contains(&"restore-name-invalid"), "{name:?}");
    }
    let swap = Restore::Swap { shadow: shadow_name(&long, id()), previous: previous_name(&long, id()), database: long };
    assert!(facts(swap).contains(&"restore-name-invalid"), "what is derived from a name is a name as well");
    for name in RESERVED_DATABASES {
        let restore = Restore::TablesInPlace { database: name.into(), tables: Vec::new() };
        assert!(facts(restore).contains(&"restore-target-reserved"));
    }
}

#[test]
fn another_environments_backup_may_come_from_anywhere_but_the_target() {
    let mut facts = good(restores()[1].clone());
    edit_manifest(&mut facts, |m| {
        m.environment = "staging".parse().unwrap();
        m.server.system_identifier = Some("77".into());
    });
    assert!(clear(facts.clone()).is_ok());
    // One server for two environments is allowed where the server says whose it is.
    edit_manifest(&mut facts, |m| m.server.system_identifier = Some("1".into()));
    assert_eq!(codes(facts.clone()), ["restore-wrong-environment"]);
    edit_target(&mut facts, |t| t.environment = Some("production".into()));
    assert!(clear(facts).is_ok());
}

#[test]
fn a_refusal_says_what_to_do_and_quotes_no_more_than_names() {
    for restore in restores() {
        for rule in rules().iter().filter(|rule| (rule.applies)(&restore)) {
            let mut facts = good(restore.clone());
            (rule.breaks)(&mut facts);
            for refusal in refusals(&facts) {
                assert!(!refusal.hint().is_empty() && !refusal.to_string().ends_with('.'), "{refusal}");
            }
        }
    }
}

proptest! {
    /// Whatever else is wrong, a broken rule never ends in a clearance; and broken rules are told all at once.
    #[test]
    fn no_clearance_where_any_rule_is_broken(
        mode in 0usize..8,
        broken in proptest::collection::btree_set(0usize..30, 0..6),
        drift in -3_600i64..3_600,
    ) {
        let restore = restores()[mode].clone();
        let mut facts = good(restore.clone());
        facts.safety_backup.as_mut().unwrap().completed = now() - SignedDuration::from_secs(drift);
        let stale = live(&restore) && !(-60..=300).contains(&drift);
        let rules = rules();
        let broken: Vec<&Rule> = broken.into_iter().filter_map(|at| rules.get(at)).filter(|rule| (rule.applies)(&restore)).collect();
        // `target` and `safety_backup` may be gone: what edits them comes first.
        let (last, first): (Vec<&&Rule>, Vec<&&Rule>) =
            broken.iter().partition(|rule| matches!(rule.code, "restore-target-unknown"));
        let gone = |rule: &&&Rule| {
            let mut probe = good(restore.clone());
            (rule.breaks)(&mut probe);
            probe.safety_backup.is_none()
        };
        let (take_away, first): (Vec<&&Rule>, Vec<&&Rule>) = first.into_iter().partition(|rule| gone(rule));
        for rule in first.into_iter().chain(take_away).chain(last) {
            (rule.breaks)(&mut facts);
        }
        let must_refuse = !broken.is_empty() || stale;
        prop_assert_eq!(clear(facts).is_err(), must_refuse);
    }
}
