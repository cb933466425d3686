//! What the way back has to be, and when one can still be taken.

use super::*;

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
fn a_backup_is_taken_only_where_it_can_be_the_way_back() {
    use crate::plan::clearance::thaw::{Archive, approve};
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
fn a_dump_that_has_to_be_thawed_is_approved_only_for_what_can_wait() {
    use crate::plan::clearance::thaw::{APPROVAL_LASTS, Archive, approve, thaw_refusals};
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
fn an_approval_opens_until_it_expires() {
    for restore in restores() {
        let with = |until: Timestamp| Facts { passkey: Passkey::Approved { until }, ..good(restore.clone()) };
        assert_eq!(refusals(&with(now())), []);
        let until = now() - SignedDuration::from_secs(1);
        assert_eq!(refusals(&with(until)), [Refusal::ApprovalExpired { until }]);
    }
}
