//! New RDS servers.

use super::*;

#[test]
fn a_new_server_is_made_only_of_the_configured_ones_snapshots_and_logs() {
    use crate::plan::clearance::rds::{RdsSource, Wanted};
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
