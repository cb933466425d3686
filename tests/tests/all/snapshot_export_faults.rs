//! RDS snapshot exports while RDS throttles, has no more to give, or answers that never arrive.

use std::time::Duration;

use holdfast_local::rds::{Course, ExportTarget, Snapshot, Step};
use holdfast_local::s3::{Fault, FaultAction};
use serde_json::json;

use crate::bed::BUCKET;
use crate::rds_rig::{AUTOMATED, KMS_KEY, ROLE, Rig, arn, event};

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_waited_for_and_beyond_that_left_to_the_next_poll() {
    let rig = Rig::start(&[]).await;
    rig.rds.fail("StartExportTask", 400, "Throttling", "Rate exceeded", 12);
    let begun = std::time::Instant::now();
    assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await.0, "rds-throttled");
    assert!(begun.elapsed() > Duration::from_secs(9), "three and six seconds between three rounds");
    assert_eq!((rig.started(), rig.rds.calls_of("StartExportTask").len()), (0, 12));
    // Nor does a right that is missing end the run: it is granted, and the next poll goes on.
    rig.rds.fail("StartExportTask", 403, "AccessDenied", "not authorized to perform: iam:PassRole", 1);
    let (code, message) = rig.fails(json!({"mode": "poll"})).await;
    assert!(code == "rds-access-denied" && message.contains("iam:PassRole"), "{code} {message}");
    assert_eq!((rig.poll().await[0]["status"].as_str(), rig.started()), (Some("exporting"), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_waited_for_and_so_is_another_task_of_the_same_snapshot() {
    let rig = Rig::start(&[]).await;
    let other = crate::rds_client::client(&rig.rds.endpoint()).await;
    let begin = async |id: &str, snapshot: &str| {
        let source = arn(snapshot).parse().unwrap();
        let (bucket, prefix) = ("elsewhere", "p");
        let export = holdfast_shared::rds::NewExport {
            id,
            source: &source,
            bucket,
            prefix,
            role_arn: ROLE,
            kms_key_id: KMS_KEY,
            only: &[],
        };
        other.start_export(&export).await.unwrap();
    };
    for n in 0..4 {
        rig.rds.add_snapshot(Snapshot::manual(&format!("other-{n}"), "other", "2025-06-01T02:00:00Z"));
        begin(&format!("other-{n}"), &format!("other-{n}")).await;
    }
    begin("same", AUTOMATED).await;
    let queued = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert!(queued["status"] == "queued" && queued["reason"].as_str().unwrap().contains("same"), "{queued}");
    let finish = async |id: &str| {
        for _ in 0..3 {
            other.export_task(id).await.unwrap();
        }
    };
    finish("same").await;
    rig.rds.add_snapshot(Snapshot::manual("other-5", "other", "2025-06-01T02:00:00Z"));
    begin("other-5", "other-5").await;
    let queued = rig.poll().await;
    assert!(
        queued[0]["status"] == "queued" && queued[0]["reason"].as_str().unwrap().contains("5 export tasks"),
        "{queued}"
    );
    assert!(rig.rds.calls_of("StartExportTask").iter().all(|call| call.parameter("S3BucketName") == Some("elsewhere")));
    finish("other-1").await;
    // RDS may know of more than it lists.
    rig.rds.fail("StartExportTask", 400, "ExportTaskLimitReachedFault", "You can't have more tasks.", 1);
    assert_eq!(rig.poll().await[0]["status"], "queued");
    rig.rds.fail("StartExportTask", 400, "Throttling", "Rate exceeded", 2);
    assert_eq!(rig.poll().await[0]["status"], "exporting");
    assert_eq!(rig.rds.tasks().iter().filter(|task| task.bucket == BUCKET).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_get_lost_and_files_that_are_late_lose_and_double_nothing() {
    let rig = Rig::start(&[]).await;
    // The task is started, and nobody could write that down.
    let unavailable = FaultAction::Status { status: 503, code: "ServiceUnavailable".into() };
    let started =
        Fault { times: 20, key_contains: Some("runs/rds-exports/".into()), ..Fault::nth("PutObject", 2, unavailable) };
    rig.s3.store().faults().push(started);
    let (code, _) = rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((code.as_str(), rig.started()), ("store-unavailable", 1));
    rig.s3.store().faults().clear();
    let found = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&found["status"], rig.started()), (&json!("exporting"), 1));

    // The manifest is written, and its answer lost.
    let lost = Fault { key_contains: Some("/metadata/".into()), ..Fault::next("PutObject", FaultAction::ResetAfter) };
    rig.s3.store().faults().push(lost);
    for _ in 0..3 {
        rig.poll().await;
    }
    assert_eq!(rig.keys("/metadata/").len(), 1);

    // Complete, and without files: no manifest, an error, and the next poll looks again.
    let empty = Course { steps: vec![Step::new("STARTING", 0), Step::new("complete", 100)], tables: Vec::new() };
    let rig = Rig::start(&[]).await;
    rig.rds.script_task(empty);
    rig.rds.set_target(ExportTarget {
        endpoint: rig.s3.endpoint(),
        access_key: "nobody".into(),
        secret_key: "s".into(),
        region: "us-east-1".into(),
    });
    rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!(rig.poll().await[0]["status"], "exporting");
    let (code, message) = rig.fails(json!({"mode": "poll"})).await;
    assert!(code == "snapshot-export-files-missing" && message.contains("export-20250621-020500"), "{code} {message}");
    assert!(rig.keys("/metadata/").is_empty());
    let folder = "postgres-exports/rds-exports/2025-06-21/export-20250621-020500/";
    let info =
        json!({"exportTaskIdentifier": "export-20250621-020500", "status": "COMPLETE", "totalExportedDataInGB": 0.0});
    rig.put(&format!("{folder}export_info_export-20250621-020500.json"), info.to_string()).await;
    rig.put(&format!("{folder}shop/public.orders/1/part-00000.gz.parquet"), "P").await;
    let (code, message) = rig.fails(json!({"mode": "poll"})).await;
    assert!(code == "snapshot-export-files-missing" && message.contains("export_tables_info"), "{code} {message}");
    let tables = json!({"perTableStatus": [{"target": "shop.public.orders", "status": "COMPLETE"}]});
    rig.put(&format!("{folder}export_tables_info_export-20250621-020500_from_1_to_1.json"), tables.to_string()).await;
    assert_eq!(rig.poll().await[0]["status"], "complete");

    // Files that never come are waited for as long as anything is.
    let (older, id) = ("rds:shop-2025-06-20-02-00", "20250620-020500");
    let steps = vec![Step::new("STARTING", 0), Step::new("COMPLETE", 100)];
    rig.rds.script_task(Course { steps, tables: Vec::new() });
    let mut created = event("RDS-EVENT-0091", &arn(older));
    created["detail"]["Date"] = json!("2025-06-20T02:05:00.000Z");
    rig.run(created).await;
    rig.poll().await;
    rig.fails(json!({"mode": "poll"})).await;
    let days_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(48);
    rig.edit_run(id, |run| run["task"]["completed"] = json!(days_ago)).await;
    assert_eq!(rig.fails(event("RDS-EVENT-0161", &arn(older))).await.0, "snapshot-export-files-missing");
    assert_eq!(
        (rig.poll().await, rig.json(&format!("runs/rds-exports/{id}.json")).await["state"].clone()),
        (json!([]), json!("failed"))
    );

    // Many deliveries at once.
    let rig = Rig::start(&[]).await;
    let deliveries = (0..6).map(|_| rig.invoke(event("RDS-EVENT-0091", &arn(AUTOMATED))));
    let outcomes = futures::future::join_all(deliveries).await;
    assert!(outcomes.iter().all(|outcome| !outcome.is_error()), "{outcomes:#?}");
    assert_eq!(rig.started(), 1);
}
