//! Retention stopped at every one of its calls: killed there, refused there, its answer lost. The next run ends the work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use holdfast_local::s3::{Fault, FaultAction};
use serde_json::{Value, json};

use crate::bed::BUCKET;
use crate::retention_rig::{LAST_TWO, LEASE, RETENTION, Rig, day, days, dump_key, manifest, manifest_key};

/// Expired by a run that died before it deleted anything.
const HALF_GONE: &str = "20241231-020000";
const OF_RETENTION: &str = "runs/retention/";

#[derive(Debug, Clone, Copy)]
enum Stop {
    Killed,
    Refused,
    AnswerLost,
}

fn folder(n: usize) -> String {
    format!("postgres-exports/rds-exports/2025-01-{n:02}/export-{}/", day(n))
}

/// Something of everything that a run has to do. Of four backups the last two stay.
async fn scene() -> Rig {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO), ("RETENTION_CONCURRENCY", "1")]).await;
    days(&rig, 1..=4).await;
    for n in 2..=4 {
        let mut export = manifest(&day(n));
        export["artifacts"]["rds-export"] = json!({"key": folder(n), "size_bytes": 8});
        rig.backup(&export).await;
    }
    let mut half_gone = manifest(HALF_GONE);
    rig.backup(&half_gone).await;
    let mut dump = half_gone["artifacts"]["dump"].clone();
    dump["expired"] = json!({"at": "2025-01-20T02:00:00Z", "reason": "old", "by": "r", "forced": false});
    (half_gone["state"], half_gone["artifacts"]) = (json!("expired"), json!({}));
    half_gone["expired_artifacts"] = json!({"dump": dump});
    rig.put(&manifest_key(HALF_GONE), half_gone.to_string()).await;

    let orphan = dump_key(&day(9));
    rig.put(&orphan, "data").await;
    let pin = json!({"backup_id": day(1), "request_id": "r", "purpose": "restore", "expires": "2025-01-01T03:00:00Z"});
    rig.put(&format!("pins/{}/r.json", day(1)), pin.to_string()).await;
    let lease = json!({"state": "held", "backup_id": day(1), "event_key": "k", "request_id": "r",
                       "since": "2025-01-01T02:00:00Z", "expires": "2025-01-01T02:01:00Z"});
    rig.put("runs/leases/production/dead.json", lease.to_string()).await;
    rig.put("restores/waiting/production/over.json", "").await;
    rig.client().create_multipart_upload().bucket(BUCKET).key(dump_key(&day(8))).send().await.unwrap();
    let three_days = Duration::from_secs(72 * 3600);
    rig.s3.store().age_uploads(three_days);
    rig.s3.store().age_objects(three_days);
    let reported = rig.s3.store().objects(BUCKET).into_iter().find(|object| object.key == orphan).unwrap();
    let state = json!({"orphans": {&orphan: reported.last_modified}, "reported": {&orphan: "2025-01-20T02:00:00Z"}});
    rig.put(&format!("{OF_RETENTION}state.json"), state.to_string()).await;
    rig.s3.store().clear_requests();
    rig
}

/// What is in the bucket, and what its manifests say of what is gone.
async fn left(rig: &Rig) -> (BTreeSet<String>, BTreeMap<String, Vec<bool>>) {
    let objects: BTreeSet<String> = rig.present().into_iter().filter(|key| !key.starts_with(OF_RETENTION)).collect();
    let mut expired = BTreeMap::new();
    for key in objects.iter().filter(|key| key.contains("/metadata/")) {
        let manifest = rig.json(key).await;
        let artifacts = manifest["expired_artifacts"].as_object().cloned().unwrap_or_default();
        expired.insert(key.clone(), artifacts.values().map(|a| a["expired"]["done"].is_string()).collect());
    }
    (objects, expired)
}

async fn what_must_stay_is_whole(rig: &Rig, about: &str) {
    for n in [3, 4] {
        assert!(rig.present().contains(&dump_key(&day(n))), "{about}: the dump of {n} is gone");
        assert_eq!(rig.present().iter().filter(|key| key.starts_with(&folder(n))).count(), 2, "{about}");
        assert_eq!(rig.json(&manifest_key(&day(n))).await["state"], "complete", "{about}");
    }
    rig.no_version_was_deleted();
}

async fn stopped(stop: Stop, operation: &'static str, nth: u64) -> Rig {
    let about = format!("{stop:?} at {operation} {nth}");
    let rig = scene().await;
    let action = match stop {
        Stop::Killed => FaultAction::Hang(Duration::from_secs(60)),
        Stop::Refused => FaultAction::Status { status: 403, code: "AccessDenied".into() },
        Stop::AnswerLost => FaultAction::ResetAfter,
    };
    rig.s3.store().faults().push(Fault::nth(operation, nth, action));
    let struck = || rig.s3.store().faults().pending() == 0;
    if let Stop::Killed = stop {
        let (killed, ()) = tokio::join!(rig.invoke(json!({})), async {
            crate::scene::until(&about, struck).await;
            rig.lambda.kill_instances(RETENTION);
        });
        assert_eq!(killed.payload["errorType"], "Runtime.ExitError", "{about}: {:#}", killed.payload);
    } else {
        rig.invoke(json!({})).await;
        assert!(struck(), "{about} was not met");
    }
    rig.s3.store().faults().clear();
    what_must_stay_is_whole(&rig, &about).await;
    if rig.present().contains(LEASE) {
        let mut lease: Value = rig.json(LEASE).await;
        lease["expires"] = json!("2020-01-01T00:00:00Z");
        rig.put(LEASE, lease.to_string()).await;
    }
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_may_be_stopped_at_any_call() {
    let rig = scene().await;
    rig.run(json!({})).await;
    let mut calls: BTreeMap<String, u64> = BTreeMap::new();
    for request in rig.s3.store().requests() {
        *calls.entry(request.operation).or_default() += 1;
    }
    what_must_stay_is_whole(&rig, "undisturbed").await;
    let expected = left(&rig).await;
    let gone = [dump_key(&day(1)), dump_key(&day(2)), dump_key(HALF_GONE), dump_key(&day(9))];
    assert!(gone.iter().all(|key| !expected.0.contains(key)) && rig.s3.store().pending_uploads(BUCKET).is_empty());
    assert!(expected.1.values().flatten().filter(|done| **done).count() == 4, "{:#?}", expected.1);
    assert!(calls.values().sum::<u64>() > 60 && calls.len() >= 8, "{calls:?}");

    let mut cases: Vec<(Stop, &'static str, u64)> = Vec::new();
    for (operation, count) in calls {
        let changes = !operation.starts_with("Get") && !operation.starts_with("List");
        let operation: &'static str = operation.leak();
        for nth in 1..=count {
            cases.extend([(Stop::Killed, operation, nth), (Stop::Refused, operation, nth)]);
            cases.extend(changes.then_some((Stop::AnswerLost, operation, nth)));
        }
    }
    println!("{} stops", cases.len());
    let expected = &expected;
    let runs = cases.into_iter().map(|(stop, operation, nth)| async move {
        let about = format!("{stop:?} at {operation} {nth}");
        let rig = stopped(stop, operation, nth).await;
        rig.run(json!({})).await;
        assert_eq!(left(&rig).await, *expected, "{about}");
        assert!(rig.s3.store().pending_uploads(BUCKET).is_empty(), "{about}");
        if matches!(stop, Stop::Killed) {
            rig.s3.store().clear_requests();
            rig.run(json!({})).await;
            assert_eq!(rig.changes(), BTreeMap::new(), "{about}: a third run finds something to do");
        }
    });
    futures::stream::iter(runs).buffer_unordered(6).collect::<()>().await;
}
