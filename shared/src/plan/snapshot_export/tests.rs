use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::plan::snapshot_export::run::{SnapshotFacts, TaskFacts};

const ARN: &str = "arn:aws:rds:eu-west-1:123456789012:snapshot:rds:shop-1";
const PREFIX: &str = "postgres-exports/rds-exports/2025-06-21";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn snapshot() -> Snapshot {
    Snapshot { created: Some(at("2025-06-21T02:03:00Z")), ..Snapshot::of_shop("rds:shop-1", SnapshotType::Automated) }
}

fn run() -> Run {
    Run {
        backup_id: "20250621-143000".parse().unwrap(),
        event_key: "e".into(),
        environment: "production".parse().unwrap(),
        server: "shop".parse().unwrap(),
        snapshot_id: "rds:shop-1".into(),
        takes_snapshot: false,
        only: Vec::new(),
        purpose: "rds_export".into(),
        created_by: "schedule".into(),
        begun: at("2025-06-21T14:30:00Z"),
        state: RunState::Waiting,
        reason: None,
        snapshot: None,
        task: None,
        stall_told: false,
        table_failures: Vec::new(),
        written_by: "r".into(),
        revision: 0,
    }
}

fn started() -> Run {
    let started = at("2025-06-21T14:31:00Z");
    let task = TaskFacts {
        id: "export-20250621-143000".into(),
        started,
        status: TaskStatus::Starting,
        percent: 0,
        completed: None,
    };
    Run { task: Some(task), state: RunState::Exporting, snapshot: Some(SnapshotFacts::from(&snapshot())), ..run() }
}

fn task(status: &str) -> ExportTask {
    ExportTask {
        id: "export-20250621-143000".into(),
        source_arn: ARN.into(),
        status: status.parse().unwrap(),
        percent: 7,
        extracted_gb: 0,
        failure_cause: None,
        warning: None,
        started: None,
        ended: None,
        bucket: "b".into(),
        prefix: PREFIX.into(),
    }
}

fn step(
    run: &Run,
    snapshot: Option<&Snapshot>,
    task: Option<&ExportTask>,
    under_way: &[ExportTask],
    now: &str,
) -> Step {
    let sources = ["shop".parse().unwrap()];
    let rules = Rules {
        sources: &sources,
        account: "123456789012",
        region: "eu-west-1",
        require_encrypted: true,
        starting_limit: SignedDuration::from_hours(4),
        wait_limit: SignedDuration::from_hours(24),
        bucket: "b",
        prefix: PREFIX,
    };
    next_step(run, Observed { snapshot, task, under_way }, &rules, at(now))
}

const SOON: &str = "2025-06-21T14:35:00Z";

#[test]
fn before_a_task_each_state_has_its_step() {
    let start = |snapshot: Option<&Snapshot>, under_way: &[ExportTask]| step(&run(), snapshot, None, under_way, SOON);
    assert_eq!(start(Some(&snapshot()), &[]), Step::Start);
    assert!(matches!(start(None, &[]), Step::Fail(Failure::SnapshotNotFound { .. })));
    let creating = Snapshot { status: "creating".into(), percent_progress: Some(40), ..snapshot() };
    assert!(
        matches!(start(Some(&creating), &[]), Step::Wait { state: RunState::Waiting, reason } if reason.contains("40 %"))
    );
    let foreign =
        |n: usize| ExportTask { id: format!("other-{n}"), source_arn: format!("other-{n}"), ..task("STARTING") };
    let others: Vec<ExportTask> = (0..5).map(foreign).collect();
    assert!(matches!(start(Some(&snapshot()), &others), Step::Wait { state: RunState::Queued, .. }));
    assert_eq!(start(Some(&snapshot()), &others[..4]), Step::Start);
    let same = [ExportTask { id: "other".into(), ..task("IN_PROGRESS") }];
    assert!(
        matches!(start(Some(&snapshot()), &same), Step::Wait { state: RunState::Queued, reason } if reason.contains("other"))
    );
}

#[test]
fn a_snapshot_that_is_not_to_be_exported_says_why() {
    let failed = |edit: fn(&mut Snapshot)| {
        let mut snapshot = snapshot();
        edit(&mut snapshot);
        match step(&run(), Some(&snapshot), None, &[], SOON) {
            Step::Fail(failure) => crate::fault::Fault::from(failure).code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failed(|s| s.server = "other".parse().unwrap()), "snapshot-not-ours");
    assert_eq!(failed(|s| s.server = "cluster:shop".parse().unwrap()), "snapshot-not-ours");
    assert_eq!(failed(|s| s.arn = ARN.replace("123456789012", "999999999999").parse().unwrap()), "snapshot-not-ours");
    assert_eq!(failed(|s| s.arn = ARN.replace("west-1:", "west-2:").parse().unwrap()), "snapshot-not-ours");
    assert_eq!(failed(|s| s.snapshot_type = SnapshotType::Other), "snapshot-not-ours");
    assert_eq!(failed(|s| s.engine = "aurora-mysql".into()), "snapshot-engine-unsupported");
    assert_eq!(failed(|s| s.engine_mode = Some("serverless".into())), "snapshot-serverless-v1");
    assert_eq!(failed(|s| s.encrypted = false), "snapshot-not-encrypted");
    assert_eq!(failed(|s| s.status = "deleting".into()), "snapshot-not-available");
}

#[test]
fn a_run_that_takes_its_snapshot_takes_it_once_and_waits_until_it_is_seen() {
    let mut taking = Run { takes_snapshot: true, ..run() };
    assert_eq!(step(&taking, None, None, &[], SOON), Step::TakeSnapshot);
    taking.snapshot = Some(SnapshotFacts::from(&snapshot()));
    assert!(matches!(step(&taking, None, None, &[], SOON), Step::Wait { .. }));
    let gone = step(&taking, None, None, &[], "2025-06-21T15:00:00Z");
    assert!(matches!(gone, Step::Fail(Failure::SnapshotNotFound { .. })));
}

#[test]
fn waiting_has_an_end() {
    let creating = Snapshot { status: "creating".into(), ..snapshot() };
    let last = step(&run(), Some(&creating), None, &[], "2025-06-22T14:30:00Z");
    assert!(matches!(last, Step::Wait { .. }));
    let over = step(&run(), Some(&creating), None, &[], "2025-06-22T14:30:01Z");
    assert!(matches!(over, Step::Fail(Failure::WaitedTooLong { hours: 24, .. })));
}

#[test]
fn a_task_is_followed_to_each_of_its_ends() {
    let follow = |status: &str, now: &str| step(&started(), None, Some(&task(status)), &[], now);
    for status in ["STARTING", "IN_PROGRESS", "CANCELING", "SOMETHING_NEW"] {
        assert!(matches!(follow(status, SOON), Step::Follow { percent: 7, stalled: false, .. }), "{status}");
    }
    assert_eq!(follow("complete", SOON), Step::Commit);
    assert!(matches!(follow("FAILED", SOON), Step::Fail(Failure::TaskFailed { .. })));
    assert!(matches!(follow("CANCELED", SOON), Step::Fail(Failure::TaskCanceled { .. })));
    // Started by an invocation that could not write it down.
    assert!(matches!(step(&run(), None, Some(&task("STARTING")), &[], SOON), Step::Follow { .. }));
}

#[test]
fn a_role_of_another_account_and_a_key_of_another_region_can_be_handed_to_nobody() {
    let rules = Rules {
        sources: &[],
        account: "123456789012",
        region: "eu-west-1",
        require_encrypted: true,
        starting_limit: SignedDuration::ZERO,
        wait_limit: SignedDuration::ZERO,
        bucket: "b",
        prefix: "",
    };
    let (role, key) = ("arn:aws:iam::123456789012:role/a:b", "arn:aws:kms:eu-west-1:999999999999:key/mrk-1");
    assert_eq!(can_be_handed(role, key, &rules), Ok(()), "keys of other accounts may be lent");
    let foreign = can_be_handed(&role.replace("1234", "9999"), key, &rules);
    assert!(matches!(foreign, Err(Failure::RoleNotOurs { .. })));
    let elsewhere = can_be_handed(role, &key.replace("west-1:", "west-2:"), &rules);
    assert!(matches!(elsewhere, Err(Failure::KeyElsewhere { .. })));
    assert!(can_be_handed("role", "key", &rules).is_err());
}

#[test]
fn starting_for_hours_is_told_once() {
    let late = "2025-06-21T18:31:01Z";
    let stalled = |run: &Run, status: &str, now: &str| {
        matches!(step(run, None, Some(&task(status)), &[], now), Step::Follow { stalled: true, .. })
    };
    assert!(stalled(&started(), "STARTING", late));
    assert!(!stalled(&started(), "STARTING", "2025-06-21T18:31:00Z"));
    assert!(!stalled(&started(), "IN_PROGRESS", late));
    assert!(!stalled(&Run { stall_told: true, ..started() }, "STARTING", late));
}

#[test]
fn a_task_that_is_gone_or_somebody_elses_is_told() {
    assert!(matches!(step(&started(), None, None, &[], SOON), Step::Follow { .. }), "not described yet");
    let gone = step(&started(), None, None, &[], "2025-06-21T15:00:00Z");
    assert!(matches!(gone, Step::Fail(Failure::TaskLost { .. })));
    for foreign in [
        ExportTask { bucket: "other".into(), ..task("COMPLETE") },
        ExportTask { prefix: "other".into(), ..task("COMPLETE") },
        ExportTask { source_arn: "other".into(), ..task("COMPLETE") },
    ] {
        let refused = step(&started(), None, Some(&foreign), &[], SOON);
        assert!(matches!(refused, Step::Fail(Failure::TaskIdTaken { .. })), "{foreign:?}");
    }
}

#[test]
fn the_newest_snapshot_is_one_that_is_there() {
    let of = |created: Option<&str>, status: &str| Snapshot {
        created: created.map(at),
        status: status.into(),
        ..snapshot()
    };
    let snapshots = [
        of(Some("2025-06-20T02:00:00Z"), "available"),
        of(Some("2025-06-21T02:00:00Z"), "available"),
        of(Some("2025-06-22T02:00:00Z"), "creating"),
        of(None, "available"),
    ];
    assert_eq!(newest(&snapshots).unwrap().created, Some(at("2025-06-21T02:00:00Z")));
    assert!(newest(&snapshots[2..]).is_none());
}
