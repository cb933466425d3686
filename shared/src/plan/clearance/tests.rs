use proptest::prelude::*;

use super::*;
use crate::domain::Manifest;
use crate::domain::rds::{ServerSettings, Snapshot, SnapshotType};
use crate::plan::clearance::asked::{
    aside_name, last_previous, new_database_name, previous_name, schema_name, scratch_name, shadow_name,
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
fn a_safety_backup_may_lack_what_the_restore_cannot_touch() {
    for restore in restores().into_iter().filter(|restore| matches!(restore, Restore::TablesInPlace { .. })) {
        let mut facts = good(restore);
        edit_safety(&mut facts, |safety| safety.left_out = vec!["public.logs".parse().unwrap()]);
        if let Source::Backup(manifest) = &mut facts.source {
            manifest.selection.exclude = vec!["public.logs".parse().unwrap()];
        }
        assert_eq!(codes(facts), [] as [&str; 0]);
    }
}

#[test]
fn a_swap_may_leave_in_the_old_database_what_the_request_names() {
    let patterns = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<TablePattern>>();
    let swaps: Vec<Restore> = restores().into_iter().filter(|r| matches!(r, Restore::Swap { .. })).collect();
    let partial = "restore-backup-partial";
    let unsafe_ = "restore-safety-backup-missing";
    // What the backup leaves out, what the safety backup does, what the request accepts.
    for (backup, safety, accepted, expected) in [
        (&["a.logs"][..], &["a.logs"][..], &["a.logs"][..], &[][..]),
        (&["a.logs"], &["a.logs"], &[], &[partial]),
        (&["a.logs", "a.jobs"], &[], &["a.logs"], &[partial]),
        (&["a.logs"], &[], &["a.*"], &[partial]),
        // Left out only since the backup: what is replaced is nowhere but in the database put aside.
        (&[], &["a.logs"], &["a.logs"], &[]),
        (&[], &["a.logs", "a.jobs"], &["a.logs"], &[unsafe_]),
    ] {
        for restore in &swaps {
            let mut facts = good(restore.clone());
            edit_manifest(&mut facts, |manifest| manifest.selection.exclude_data = patterns(backup));
            edit_safety(&mut facts, |found| found.left_out = patterns(safety));
            facts.accepts_left_out = patterns(accepted);
            assert_eq!(codes(facts), expected, "{backup:?} {safety:?} {accepted:?}");
        }
    }
    for restore in restores().into_iter().filter(live) {
        let (swap, in_place) =
            (matches!(restore, Restore::Swap { .. }), matches!(restore, Restore::TablesInPlace { .. }));
        let mut facts = good(restore);
        // A backup of chosen tables is swapped in by no word, and rows in place are overwritten.
        edit_manifest(&mut facts, |manifest| manifest.selection.include = patterns(&["a.logs"]));
        edit_safety(&mut facts, |found| found.left_out = patterns(&["a.jobs"]));
        facts.accepts_left_out = patterns(&["a.logs", "a.jobs"]);
        let expected: &[&str] = match (swap, in_place) {
            (true, _) => &[partial],
            (_, true) => &[unsafe_],
            _ => &[],
        };
        assert_eq!(codes(facts), expected);
    }
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
fn the_database_that_a_swap_has_put_aside_last_is_the_one_that_comes_back() {
    use crate::domain::put_aside::Exchange::{Replaced, Undone};
    // Older backups were swapped in later.
    let notes: BTreeMap<String, PutAside> = [
        ("shop_before_20250601-020000", Replaced, "2025-06-01T12:00:00Z"),
        ("shop_before_20250530-020000", Replaced, "2025-06-21T12:00:00Z"),
        ("shop_before_20250529-020000", Replaced, "2025-06-21T12:00:00Z"),
        ("shop_before_20250602-020000", Undone, "2025-06-22T12:00:00Z"),
        ("shop_before_x", Replaced, "2025-06-22T12:00:00Z"),
        ("shop_undone_20250601-020000", Undone, "2025-06-22T12:00:00Z"),
        ("shopper_before_20250622-020000", Replaced, "2025-06-22T12:00:00Z"),
    ]
    .map(|(name, by, at)| {
        (name.to_owned(), PutAside { by, by_backup: None, at: at.parse().unwrap(), keep_until: None })
    })
    .into();
    let last = last_previous("shop", &notes).unwrap();
    assert_eq!((last.name.as_str(), last.id), ("shop_before_20250530-020000", "20250530-020000".parse().unwrap()));
    assert_eq!(last_previous("other", &notes), None);
}

#[test]
fn a_database_without_a_note_does_not_come_back_and_is_named() {
    let undo = |previous: Option<&str>| {
        let mut facts = good(restores()[4].clone());
        edit_target(&mut facts, |target| {
            target.databases.extend(["shop_before_x", "shopper_before_20250622-020000"].map(str::to_owned));
            target.databases.remove("shop_before_20250620-020000");
            target.databases.extend(previous.map(str::to_owned));
        });
        facts.restore =
            Restore::Undo { database: "shop".into(), previous: None, put_aside: None, aside: aside_name("shop", id()) };
        refusals(&facts).iter().map(|refusal| format!("{}: {refusal}", refusal.code())).collect::<Vec<_>>()
    };
    let nothing = "restore-nothing-to-undo: no swap has put a database \"shop\" aside";
    assert_eq!(undo(None), [nothing]);
    let unmarked = format!("{nothing}; \"shop_before_20250620-020000\" has no note that says so");
    assert_eq!(undo(Some("shop_before_20250620-020000")), [unmarked]);
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

#[test]
fn a_dump_that_has_to_be_thawed_is_approved_only_for_what_can_wait() {
    use super::thaw::{APPROVAL_LASTS, Archive, approve, thaw_refusals};
    for restore in restores() {
        let changes = restore.changes_existing_data();
        let mut facts = good(restore);
        // It would be hours old when the restore goes on.
        facts.safety_backup = None;
        let codes =
            |archive, takes| thaw_refusals(&facts, archive, takes).iter().map(Refusal::code).collect::<Vec<_>>();
        let expected: &[&str] = if changes { &["restore-thaw-without-safety-backup"] } else { &[] };
        assert_eq!(codes(Archive::Flexible, false), expected, "{:?}", facts.restore);
        assert_eq!(codes(Archive::Deep, true), [""; 0]);
        facts.options.tier = Tier::Expedited;
        let codes = thaw_refusals(&facts, Archive::Deep, true);
        assert_eq!(codes, [Refusal::TierUnavailable]);
        let approval = approve(facts, Archive::Flexible, true).unwrap();
        assert_eq!((approval.expected(), approval.expires()), (SignedDuration::from_mins(5), now() + APPROVAL_LASTS));
    }
}

#[test]
fn a_backup_is_taken_only_where_it_can_be_the_way_back() {
    use super::thaw::{Archive, approve};
    type Change = fn(&mut Facts);
    let lacking: Change = |f| edit_safety(f, |s| s.left_out = vec!["public.logs".parse().unwrap()]);
    let rows: [(Change, Option<InVain>); 6] = [
        (|f| f.safety_backup = None, None),
        (|f| edit_safety(f, |s| s.completed = "2025-06-20T00:00:00Z".parse().unwrap()), None),
        (|f| f.export_function = false, Some(InVain::NoExportFunction)),
        (|f| f.live_database = "crm".into(), Some(InVain::OtherDatabase)),
        (|f| edit_safety(f, |s| s.standby = true), Some(InVain::Standby)),
        (lacking, Some(InVain::LeavesOut)),
    ];
    for restore in restores().into_iter().filter(live) {
        for (change, expected) in rows {
            let mut facts = good(restore.clone());
            change(&mut facts);
            // What an undo replaces is put aside whole.
            let undone = matches!(restore, Restore::Undo { .. }) && expected == Some(InVain::LeavesOut);
            let expected = expected.filter(|_| !undone);
            assert_eq!(export_in_vain(&facts), expected, "{restore:?}");
            // A dump is not thawed for what will be refused then.
            let approved = approve(facts.clone(), Archive::Deep, true);
            assert_eq!(approved.is_err(), expected.is_some(), "{restore:?} {expected:?}");
            if let Some(Refusal::ThawWithoutSafetyBackup { in_vain, .. }) =
                approved.err().and_then(|r| r.first().cloned())
            {
                assert_eq!(in_vain, expected);
            }
            if expected.is_some_and(|why| why != InVain::LeavesOut && why != InVain::Standby) {
                facts.safety_backup = None;
            }
            let cured: Vec<bool> = refusals(&facts).iter().map(Refusal::is_cured_by_export).collect();
            assert_eq!(cured, if undone { vec![] } else { vec![expected.is_none()] }, "{restore:?} {expected:?}");
            let after: Vec<Refusal> = refusals(&facts).into_iter().map(Refusal::after_export).collect();
            assert!(!after.iter().any(Refusal::is_cured_by_export), "{after:?}");
        }
    }
}

#[test]
fn an_approval_opens_until_it_expires() {
    for restore in restores() {
        let with = |until: Timestamp| Facts { passkey: Passkey::Approved { until }, ..good(restore.clone()) };
        assert_eq!(refusals(&with(now())), []);
        let until = now() - SignedDuration::from_secs(1);
        assert_eq!(refusals(&with(until)), [Refusal::ApprovalExpired { until }]);
    }
}

#[test]
fn a_new_server_is_made_only_of_the_configured_ones_snapshots_and_logs() {
    use super::rds::{RdsSource, Wanted};
    type Change = fn(&mut RdsSource);
    let from_snapshot = || Restore::RdsSnapshot { snapshot: Some("x".into()), instance: "shop-2".into() };
    let at = |text: &str| Restore::RdsPointInTime { moment: Some(text.parse().unwrap()), instance: "shop-2".into() };
    let named = |name: &str| Restore::RdsSnapshot { snapshot: None, instance: name.into() };
    let placed = |s: &mut RdsSource| {
        s.server = None;
        s.wanted =
            Wanted { subnet_group: Some("private".into()), security_groups: vec!["sg-9".into()], ..Wanted::default() };
    };
    let rows: Vec<(Restore, Change, &[&str])> = vec![
        (from_snapshot(), |_| {}, &[]),
        (from_snapshot(), |s| s.configured = None, &["restore-rds-not-configured"]),
        (from_snapshot(), |s| s.snapshot = None, &["restore-rds-snapshot-unknown"]),
        (from_snapshot(), |s| s.foreign_arn = Some("arn".into()), &["restore-rds-snapshot-foreign"]),
        (from_snapshot(), |s| s.configured = Some("other".parse().unwrap()), &["restore-rds-snapshot-foreign"]),
        (
            from_snapshot(),
            |s| s.configured = Some("cluster:shop".parse().unwrap()),
            &["restore-rds-snapshot-foreign", "restore-rds-class-unknown"],
        ),
        (
            from_snapshot(),
            |s| s.snapshot.as_mut().unwrap().status = "creating".into(),
            &["restore-rds-snapshot-not-available"],
        ),
        (from_snapshot(), |s| s.taken = Some("shop2".into()), &["restore-rds-target-exists"]),
        (from_snapshot(), |s| s.server = None, &["restore-rds-source-missing"]),
        (from_snapshot(), placed, &[]),
        (at("2025-06-20T00:00:00Z"), placed, &["restore-rds-source-missing"]),
        (at("2025-06-20T00:00:00Z"), |_| {}, &[]),
        (at("2025-06-21T14:55:01Z"), |_| {}, &["restore-rds-moment-outside"]),
        (at("2025-06-13T23:59:59Z"), |_| {}, &["restore-rds-moment-outside"]),
        (
            Restore::RdsPointInTime { moment: None, instance: "shop-2".into() },
            |s| s.server.as_mut().unwrap().latest_restorable = None,
            &["restore-rds-moment-outside"],
        ),
        (named("shop_2"), |_| {}, &["restore-name-invalid"]),
        (named(&"a".repeat(62)), |_| {}, &["restore-name-invalid"]),
    ];
    for (restore, change, expected) in rows {
        let mut source = rds_source();
        change(&mut source);
        let facts = Facts { source: rds(source), ..good(restore) };
        let codes: Vec<&str> = refusals(&facts).iter().map(Refusal::code).collect();
        assert_eq!(codes, expected, "{:?} {:?}", facts.restore, facts.source);
    }
}
