//! RDS snapshot exports: each course of a task, what comes twice or not at all, and what is refused before a task is started.

use holdfast_local::rds::{Course, ExportedTable, Snapshot, Step};
use holdfast_shared::domain::Manifest;
use serde_json::{Value, json};

use crate::bed::{BUCKET, s3_client};
use crate::rds_rig::{AUTOMATED, KMS_KEY, ROLE, Rig, SNAPSHOT_EXPORT, arn, event, notification, saying};

#[tokio::test(flavor = "multi_thread")]
async fn an_automated_snapshot_is_exported_once_followed_and_listed() {
    let rig = Rig::start(&[]).await;
    let begun = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&begun["status"], &begun["id"]), (&json!("exporting"), &json!("20250621-020500")));
    let again = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!(again["task"]["status"], "STARTING");
    let told = rig.run(notification("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&told["id"], &told["task"]["percent"]), (&begun["id"], &json!(40)));
    assert!(rig.keys("/metadata/").is_empty(), "nothing is listed before the end");

    let [start] = &rig.rds.calls_of("StartExportTask")[..] else { panic!("{:?}", rig.rds.calls()) };
    for (name, value) in [
        ("ExportTaskIdentifier", "export-20250621-020500"),
        ("SourceArn", &arn(AUTOMATED)),
        ("S3BucketName", BUCKET),
        ("S3Prefix", "postgres-exports/rds-exports/2025-06-21"),
        ("IamRoleArn", ROLE),
        ("KmsKeyId", KMS_KEY),
    ] {
        assert_eq!(start.parameter(name), Some(value));
    }
    assert_eq!(start.parameter("ExportOnly.member.1"), None);

    let done = rig.run(event("RDS-EVENT-0161", &arn(AUTOMATED))).await;
    assert_eq!((&done["status"], &done["tables"], &done["warnings"]), (&json!("complete"), &json!(2), &json!([])));
    let folder = "postgres-exports/rds-exports/2025-06-21/export-20250621-020500/";
    let manifest = rig.manifest().await;
    assert_eq!((&manifest["manifest_version"], &manifest["restorable"]), (&json!(1), &json!(false)));
    assert_eq!((&manifest["source"]["type"], &manifest["source"]["instance"]), (&json!("rds"), &json!("shop")));
    assert_eq!(manifest["source"]["snapshot_id"], AUTOMATED);
    assert_eq!(manifest["artifacts"]["rds-export"]["key"], folder);
    assert_eq!(manifest["exports"]["rds-export"]["path"], format!("s3://{BUCKET}/{folder}"));
    assert_eq!(manifest["task"]["total_exported_gb"], 4.2e-6);
    let written = rig.keys(folder);
    let stored: u64 = rig.s3.store().objects(BUCKET).iter().filter(|o| o.key.starts_with(folder)).map(|o| o.size).sum();
    assert_eq!(manifest["artifacts"]["rds-export"]["objects"], written.len());
    assert_eq!(manifest["artifacts"]["rds-export"]["size_bytes"], stored);
    let tables = manifest["tables"].as_array().unwrap();
    assert_eq!((&tables[0]["name"], &tables[0]["bytes"]), (&json!("customers"), &json!(1_200)));
    assert_eq!((&tables[1]["schema"], &tables[1]["size_gb"]), (&json!("public"), &json!(3e-6)));
    assert!(manifest["verified"].is_null());
    let refused = Manifest::parse(manifest.to_string().as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("cannot be restored"), "{refused}");
    assert_eq!(
        (rig.told("SnapshotExportSucceeded"), rig.told("BackupSucceeded")),
        (1, 0),
        "no dead man's switch is held"
    );

    // Whatever comes late changes nothing, and starts nothing.
    assert_eq!(rig.run(event("RDS-EVENT-0161", &arn(AUTOMATED))).await["status"], "ignored");
    let late = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&late["status"], &late["state"]), (&json!("duplicate"), &json!("complete")));
    assert_eq!(rig.run(json!({"snapshot": AUTOMATED})).await["status"], "duplicate");
    assert_eq!(rig.poll().await, json!([]));
    assert_eq!((rig.started(), rig.keys("/metadata/").len()), (1, 1));

    // Another choice of tables is another export; the same one only by request.
    let chosen = rig.run(json!({"snapshot": arn(AUTOMATED), "tables": ["shop.public.orders"]})).await;
    assert_eq!(
        (&chosen["status"], rig.rds.tasks()[1].only.as_slice()),
        (&json!("exporting"), &["shop.public.orders".to_owned()][..])
    );
    for _ in 0..3 {
        rig.poll().await;
    }
    assert_eq!(rig.run(json!({"snapshot": AUTOMATED, "again": true})).await["status"], "exporting");
    assert_eq!(rig.started(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_get_lost_and_the_poll_follows_to_the_end() {
    let rig = Rig::start(&[("SCHEDULED_SNAPSHOT", "newest"), ("EXPORT_ON", "none")]).await;
    assert_eq!(rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await["status"], "ignored");
    let schedule = json!({"source": "holdfast.schedule", "schedule_arn": "arn:aws:scheduler:us-east-1:123456789012:schedule/default/rds",
                          "scheduled_time": "2025-06-21T04:00:00Z", "purpose": "weekly_parquet"});
    let begun = rig.run(schedule.clone()).await;
    let begun = begun["exports"].as_array().unwrap();
    assert_eq!(begun.len(), 2, "one of the instance, one of the cluster");
    assert_eq!((&begun[0]["snapshot"], &begun[0]["id"]), (&json!(AUTOMATED), &json!("20250621-040000")));
    assert_eq!((&begun[1]["server"], &begun[1]["id"]), (&json!("cluster:aurora"), &json!("20250621-040001")));
    assert_eq!(rig.run(schedule.clone()).await["exports"].as_array().unwrap().len(), 2);
    assert_eq!(rig.started(), 2, "a schedule that is retried starts nothing anew");
    let mut seen: Vec<String> = Vec::new();
    let mut poll =
        json!({"source": "holdfast.schedule", "schedule_arn": "arn:poll", "scheduled_time": "2025-06-21T04:15:00Z"});
    poll["mode"] = json!("poll");
    // A record that cannot be read is told, and does not keep the others from being followed.
    let broken = "runs/rds-exports/20250620-040000.json";
    let before = rig.json("runs/rds-exports/20250621-040000.json").await["revision"].clone();
    rig.put(broken, "{").await;
    assert_eq!(rig.fails(poll.clone()).await.0, "snapshot-export-run-unreadable");
    assert_ne!(rig.json("runs/rds-exports/20250621-040000.json").await["revision"], before);
    s3_client(&rig.s3).delete_object().bucket(BUCKET).key(broken).send().await.unwrap();
    while seen.last().is_none_or(|last| last != "complete") {
        let exports = rig.run(poll.clone()).await["exports"].clone();
        seen.push(exports[0]["status"].as_str().unwrap().to_owned());
        assert!(seen.len() < 6, "{seen:?}");
    }
    assert_eq!(rig.keys("/metadata/").len(), 2);
    let cluster = rig.json("postgres-exports/metadata/2025-06-21/20250621-040001.json").await;
    assert_eq!((&cluster["source"]["kind"], &cluster["purpose"]), (&json!("cluster"), &json!("weekly_parquet")));
    assert!(rig.rds.tasks()[1].source_arn.contains(":cluster-snapshot:"));

    // Nothing newer is there: that is in order for a while, and then the snapshots have stopped.
    let mut later = schedule;
    later["scheduled_time"] = json!("2025-06-22T04:00:00Z");
    let answer = rig.run(later.clone()).await;
    assert!(answer["exports"].as_array().unwrap().iter().all(|export| export["status"] == "duplicate"), "{answer:#}");
    let told = rig.told("SnapshotExportFailed");
    later["scheduled_time"] = json!("2025-06-24T04:00:00Z");
    let (code, message) = rig.fails(later).await;
    assert_eq!(
        (code.as_str(), message.matches("(snapshot-stale)").count()),
        ("snapshot-exports-failed", 2),
        "{message}"
    );
    assert!(message.contains(AUTOMATED), "{message}");
    assert_eq!((rig.told("SnapshotExportFailed"), rig.started()), (told + 1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_taken_first_is_waited_for_and_its_own_event_starts_no_second_export() {
    let rig = Rig::start(&[("SCHEDULED_SNAPSHOT", "manual"), ("EXPORT_ON", "both"), ("RDS_SOURCES", "shop")]).await;
    rig.rds.set_creating(2);
    let schedule =
        json!({"source": "holdfast.schedule", "schedule_arn": "arn:s", "scheduled_time": "2025-06-21T14:30:00Z"});
    let begun = rig.run(schedule.clone()).await;
    assert_eq!((&begun["status"], &begun["snapshot"]), (&json!("waiting"), &json!("manual-export-20250621-143000")));
    assert_eq!(rig.run(schedule).await["status"], "waiting");
    assert_eq!(rig.rds.calls_of("CreateDBSnapshot").len(), 1);
    let taken = rig.rds.snapshots().into_iter().find(|snapshot| snapshot.id.starts_with("manual-export-")).unwrap();
    assert_eq!(taken.tags["holdfast:environment"], "production");
    assert_eq!(taken.tags["holdfast:backup-id"], "20250621-143000");
    assert_eq!(rig.poll().await[0]["status"], "waiting");
    assert_eq!(rig.started(), 0);
    let started = rig.run(event("RDS-EVENT-0042", &arn(&taken.id))).await;
    assert_eq!((&started["status"], &started["id"]), (&json!("exporting"), &json!("20250621-143000")));
    for _ in 0..3 {
        rig.poll().await;
    }
    let late = rig.run(event("RDS-EVENT-0042", &arn(&taken.id))).await;
    assert_eq!((late["status"].as_str(), rig.started()), (Some("duplicate"), 1));
    assert_eq!(rig.manifest().await["source"]["snapshot_id"], "manual-export-20250621-143000");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rds_fails_is_told_with_its_reason_and_not_listed() {
    let rig = Rig::start(&[]).await;
    let cause = "An unknown internal error occurred: table public.blobs holds a value of 600 MB";
    rig.rds.script_task(Course { steps: vec![Step::new("IN_PROGRESS", 10), Step::failed(cause)], ..Course::default() });
    rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    rig.poll().await;
    let (code, message) = rig.fails(event("RDS-EVENT-0159", &arn(AUTOMATED))).await;
    assert!(
        code == "snapshot-export-failed" && message.contains(cause) && message.contains(AUTOMATED),
        "{code} {message}"
    );
    assert_eq!(rig.told("SnapshotExportFailed"), 1);
    assert!(rig.keys("/metadata/").is_empty());
    assert_eq!(rig.poll().await, json!([]), "it has ended");
    let late = rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert_eq!((&late["status"], &late["state"]), (&json!("duplicate"), &json!("failed")));

    // By hand it is begun anew, under another id; and then it is canceled.
    rig.rds
        .script_task(Course { steps: vec![Step::new("CANCELING", 3), Step::new("CANCELED", 3)], ..Course::default() });
    assert_eq!(rig.run(json!({"snapshot": AUTOMATED})).await["status"], "exporting");
    assert_eq!(rig.poll().await[0]["task"]["status"], "CANCELING");
    assert_eq!(rig.fails(json!({"mode": "poll"})).await.0, "snapshot-export-canceled");
    assert!(rig.keys("/metadata/").is_empty());

    // Complete, but a table of it is not.
    let tables = vec![
        ExportedTable::complete("shop.public.orders", 10),
        ExportedTable::failed("shop.public.blobs", "a row is near 2 GB"),
        ExportedTable { status: "SKIPPED".into(), ..ExportedTable::failed("shop.public.a/b", "a slash in the name") },
    ];
    let end = Step::new("COMPLETE", 100).warning("1 table was skipped");
    rig.rds.script_task(Course { steps: vec![Step::new("IN_PROGRESS", 9), end], tables });
    rig.run(json!({"snapshot": AUTOMATED})).await;
    let message = "Export task x: Table extraction failed for table blobs due to its size.";
    assert_eq!(rig.run(saying("RDS-EVENT-0484", &arn(AUTOMATED), message)).await["status"], "exporting");
    let done = rig.poll().await;
    assert_eq!((&done[0]["status"], &done[0]["tables"]), (&json!("complete"), &json!(1)));
    let manifest = rig.manifest().await;
    let warnings = manifest["warnings"].to_string();
    for told in ["1 table was skipped", "blobs is FAILED: a row is near 2 GB", "a/b is SKIPPED", "due to its size"] {
        assert!(warnings.contains(told), "{told} in {warnings}");
    }
    assert!(manifest["notes"].as_str().unwrap().contains("blobs"));
    assert_eq!(rig.told("SnapshotExportWarnings"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_have_events_of_their_own_and_each_export_of_a_snapshot_hears_of_its_own() {
    let rig = Rig::start(&[("EXPORT_ON", "both")]).await;
    let of_cluster = |id: &str| arn(id).replace(":snapshot:", ":cluster-snapshot:");
    let automated = of_cluster("rds:aurora-2025-06-21");
    let steps = vec![Step::new("IN_PROGRESS", 20), Step::new("IN_PROGRESS", 60), Step::new("COMPLETE", 100)];
    rig.rds.script_task(Course { steps, ..Course::default() });
    let begun = rig.run(event("RDS-EVENT-0169", &automated)).await;
    assert_eq!((&begun["server"], &begun["status"]), (&json!("cluster:aurora"), &json!("exporting")));
    let other = rig.run(json!({"snapshot": automated, "tables": ["shop.public.orders"]})).await;
    assert!(other["status"] == "queued" && other["id"] != begun["id"], "{other}");

    // How far it is stands in the log, and what is told of one is not put down to the other.
    let progress = "Export task export-20250621-020500: Export progress is at 20% with 1 table(s) in-progress";
    let told = rig.run(saying("RDS-EVENT-0494", &automated, progress)).await;
    assert_eq!((&told["status"], told["exports"].as_array().unwrap().len()), (&json!("several"), 2));
    let log = rig.lambda.logs(SNAPSHOT_EXPORT).join("\n");
    assert!(log.contains(progress) && log.contains("the export task is under way"), "{log}");
    let failed = "Export task export-20250621-020500: Table extraction failed for table public.blobs due to its size.";
    rig.run(saying("RDS-EVENT-0489", &automated, failed)).await;
    let failures = async |id: &Value| {
        rig.json(&format!("runs/rds-exports/{}.json", id.as_str().unwrap())).await["table_failures"].clone()
    };
    assert_eq!(failures(&begun["id"]).await, json!([failed]));
    assert_eq!(failures(&other["id"]).await, Value::Null);
    let ended = rig.run(event("RDS-EVENT-0164", &automated)).await;
    assert_eq!(
        (&ended["exports"][0]["status"], &ended["exports"][0]["warnings"]),
        (&json!("complete"), &json!([failed]))
    );
    // Its task was the only thing that the other waited for.
    assert_eq!(ended["exports"][1]["status"], "exporting");

    let manual = Snapshot::manual("before-migration", "aurora", "2025-06-21T05:00:00Z").of_cluster();
    let manual_arn = manual.arn();
    rig.rds.add_snapshot(manual);
    let canceled = vec![Step::new("STARTING", 0), Step::new("CANCELED", 0)];
    rig.rds.script_task(Course { steps: canceled, ..Course::default() });
    assert_eq!(rig.run(event("RDS-EVENT-0075", &manual_arn)).await["status"], "exporting");
    assert_eq!(rig.run(saying("RDS-EVENT-0491", &manual_arn, "")).await["task"]["status"], "STARTING");
    assert_eq!(rig.fails(event("RDS-EVENT-0163", &manual_arn)).await.0, "snapshot-export-canceled");
    rig.rds.add_snapshot(Snapshot::manual("before-release", "shop", "2025-06-21T05:00:00Z"));
    assert_eq!(rig.run(event("RDS-EVENT-0042", &arn("before-release"))).await["status"], "exporting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_starts_for_hours_is_warned_of_once_and_may_end_well() {
    let rig = Rig::start(&[]).await;
    let mut steps = vec![Step::new("STARTING", 0); 3];
    steps.push(Step::new("COMPLETE", 100));
    rig.rds.script_task(Course { steps, ..Course::default() });
    rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    rig.poll().await;
    assert_eq!(rig.told("SnapshotExportWarnings"), 0);
    let five_hours_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(5);
    rig.edit_run("20250621-020500", |run| run["task"]["started"] = json!(five_hours_ago)).await;
    for _ in 0..2 {
        assert_eq!(rig.poll().await[0]["task"]["status"], "STARTING");
    }
    assert_eq!((rig.told("SnapshotExportWarnings"), rig.told("SnapshotExportFailed")), (1, 0));
    assert!(rig.lambda.logs(SNAPSHOT_EXPORT).join("\n").contains("STARTING for more than 240 minutes"));
    assert_eq!(rig.poll().await[0]["status"], "complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_exported_is_refused_before_a_task_is_started() {
    let rig = Rig::start(&[]).await;
    let add = |id: &str, edit: fn(&mut Snapshot)| {
        let mut snapshot = Snapshot::manual(id, "shop", "2025-06-01T02:00:00Z");
        edit(&mut snapshot);
        rig.rds.add_snapshot(snapshot);
    };
    add("plain", |snapshot| snapshot.encrypted = false);
    add("mysql", |snapshot| snapshot.engine = "mysql".into());
    add("others", |snapshot| snapshot.server = "other".into());
    add("broken", |snapshot| snapshot.status = Some("failed".into()));
    let mut serverless = Snapshot::manual("serverless", "aurora", "2025-06-01T02:00:00Z").of_cluster();
    serverless.engine_mode = "serverless".into();
    rig.rds.add_snapshot(serverless);
    let foreign = "arn:aws:rds:us-east-1:999999999999:snapshot:rds:shop-2025-06-21-02-00";
    for (payload, code) in [
        (json!({"snapshot": "plain"}), "snapshot-not-encrypted"),
        (json!({"snapshot": "serverless"}), "snapshot-serverless-v1"),
        (json!({"snapshot": "mysql"}), "snapshot-engine-unsupported"),
        (json!({"snapshot": "others"}), "snapshot-not-ours"),
        (json!({"snapshot": "broken"}), "snapshot-not-available"),
        (json!({"snapshot": "absent"}), "snapshot-not-found"),
        (json!({"snapshot": foreign}), "snapshot-not-ours"),
        (event("RDS-EVENT-0091", foreign), "snapshot-not-ours"),
        (event("RDS-EVENT-0161", foreign), "snapshot-not-ours"),
        (
            event("RDS-EVENT-0091", &AUTOMATED.replace("rds:", "arn:aws:rds:eu-west-1:123456789012:snapshot:")),
            "snapshot-not-ours",
        ),
        (json!({"take_snapshot": true, "server": "other"}), "snapshot-not-ours"),
        (json!({"snapshot": AUTOMATED, "bucket": "someone-elses"}), "request-unknown-fields"),
    ] {
        assert_eq!(rig.fails(payload.clone()).await.0, code, "{payload}");
    }
    let others = rig.run(event("RDS-EVENT-0091", &arn("others"))).await;
    assert!(others["status"] == "ignored" && others["reason"].as_str().unwrap().contains("other"), "{others}");
    // AWS Backup's, and one that came and went: RDS tells of those, too.
    add("awsbackup:job-1", |_| {});
    for id in ["awsbackup:job-1", "absent"] {
        let answer = rig.run(event("RDS-EVENT-0042", &arn(id))).await;
        assert!(answer["status"] == "ignored" && answer["reason"].as_str().unwrap().contains(id), "{answer}");
    }
    assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn("rds:absent"))).await.0, "snapshot-not-found");
    assert_eq!((rig.started(), rig.keys("runs/").len()), (0, 0));

    // A role and a key that RDS could not be handed.
    for (name, value, code) in [
        ("EXPORT_ROLE_ARN", "arn:aws:iam::999999999999:role/x", "snapshot-export-role-not-ours"),
        ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:eu-west-1:123456789012:key/x", "snapshot-export-key-elsewhere"),
    ] {
        rig.configure(&[(name, value)]);
        assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await.0, code);
        assert_eq!(rig.fails(json!({"take_snapshot": true, "server": "shop"})).await.0, code);
    }
    rig.configure(&[]);
    assert!(rig.rds.calls_of("CreateDBSnapshot").is_empty() && rig.keys("runs/").is_empty());

    // What only RDS knows: the code says which, and once it is put right the same event starts the export.
    rig.rds.disable_key(KMS_KEY);
    let (code, message) = rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert!(code == "rds-key-not-accessible" && message.contains("not enabled"), "{code} {message}");
    rig.configure(&[("EXPORT_KMS_KEY_ARN", "arn:aws:kms:us-east-1:123456789012:key/other")]);
    rig.rds.add_missing_role(ROLE);
    let (code, message) = rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await;
    assert!(code == "rds-export-role-not-found" && message.contains("isn't allowed to assume"), "{code} {message}");
    rig.configure(&[
        ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:us-east-1:123456789012:key/other"),
        ("EXPORT_ROLE_ARN", "arn:aws:iam::123456789012:role/other"),
    ]);
    for (name, code) in [
        ("IamRoleMissingPermissions", "rds-export-role-rights"),
        ("InvalidS3BucketFault", "rds-bucket-not-accessible"),
        ("InvalidExportOnly", "rds-export-only-invalid"),
    ] {
        rig.rds.fail("StartExportTask", 400, name, "no", 1);
        assert_eq!(rig.fails(event("RDS-EVENT-0091", &arn(AUTOMATED))).await.0, code);
    }
    assert_eq!(rig.poll().await, json!([]), "each of these has ended");
    assert_eq!(rig.run(event("RDS-EVENT-0091", &arn(AUTOMATED))).await["status"], "exporting");

    // A snapshot without encryption goes where it is allowed.
    rig.configure(&[
        ("REQUIRE_ENCRYPTED_SNAPSHOT", "false"),
        ("EXPORT_ROLE_ARN", "arn:aws:iam::123456789012:role/other"),
        ("EXPORT_KMS_KEY_ARN", "arn:aws:kms:us-east-1:123456789012:key/other"),
    ]);
    assert_eq!(rig.run(json!({"snapshot": "plain"})).await["status"], "exporting");
}
