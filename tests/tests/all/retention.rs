//! Retention on an S3 server that checks its rights: what expires, in which order, and what a kill or a failure leaves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockRetention, ObjectLockRetentionMode};
use futures::StreamExt;
use holdfast_local::s3::{BucketOptions, Fault, FaultAction};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::bed::{BUCKET, Bed};
use crate::retention_rig::{
    KEY, LAST_TWO, RETENTION, Rig, day, days, dump_key, ids, manifest, manifest_key, rights, spec,
};

#[tokio::test(flavor = "multi_thread")]
async fn retention_does_what_its_dry_run_says_and_then_nothing() {
    let rig = Rig::start(&[]).await;
    days(&rig, 1..=31).await;
    let mut testing = manifest("20250115-100000");
    testing["purpose"] = json!("testing");
    rig.backup(&testing).await;
    let mut staging = manifest("20250101-030000");
    staging["environment"] = json!("staging");
    rig.backup(&staging).await;
    let before = rig.present();

    rig.s3.store().clear_requests();
    let dry = rig.run(json!({"dry_run": true})).await;
    assert_eq!(rig.changes(), BTreeMap::new(), "a dry run changes nothing");
    assert_eq!(ids(&dry["plan"]["expire"]), ["20250101-020000", "20250115-100000"]);
    assert_eq!(dry["plan"]["counts"]["other_environments"], 1);

    let real = rig.run(json!({})).await;
    assert_eq!(real["plan"], dry["plan"]);
    assert_eq!((&real["done"]["expired"], &real["status"]), (&json!(2), &json!("complete")));
    let gone: Vec<String> = before.difference(&rig.present()).cloned().collect();
    assert_eq!(gone, [dump_key("20250101-020000"), dump_key("20250115-100000")]);
    rig.no_version_was_deleted();

    let tombstone = rig.json(&manifest_key("20250101-020000")).await;
    let dump = &tombstone["expired_artifacts"]["dump"];
    assert_eq!((&tombstone["state"], &tombstone["artifacts"]), (&json!("expired"), &json!({})));
    assert_eq!(tombstone["kept_field"].to_string(), r#"{"b":1,"a":2}"#, "what is not known stays as it is");
    assert_eq!(
        (&dump["key"], &dump["expired"]["reason"]),
        (&json!(dump_key("20250101-020000")), &json!("rule 2 keeps it no longer"))
    );
    assert!(dump["expired"]["done"].is_string());
    let orders: Vec<String> = rig
        .s3
        .store()
        .requests()
        .into_iter()
        .filter(|r| matches!(r.operation.as_str(), "PutObject" | "DeleteObject"))
        .filter(|r| r.key.as_deref().is_some_and(|key| key.contains("20250101-020000")))
        .map(|r| r.operation)
        .collect();
    assert_eq!(orders, ["PutObject", "DeleteObject", "PutObject"], "tombstone, data, done");

    rig.s3.store().clear_requests();
    let second = rig.run(json!({})).await;
    assert_eq!((&second["done"]["expired"], rig.changes()), (&json!(0), BTreeMap::new()));
    assert_eq!(second["plan"]["counts"]["tombstones"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_sees_a_pin_that_comes_late() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO), ("RETENTION_CONCURRENCY", "1")]).await;
    days(&rig, 1..=5).await;
    let pin = |id: &str, more: Value| {
        let mut pin = json!({"backup_id": id, "request_id": "restore-1", "purpose": "restore"});
        pin.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (format!("pins/{id}/restore-1.json"), pin.to_string())
    };
    // One from before, one unreadable, and one that comes while the tombstone is being written.
    let (key, body) = pin(&day(1), json!({"expires": Timestamp::now() + SignedDuration::from_hours(1)}));
    rig.put(&key, body).await;
    rig.put(&format!("pins/{}/odd.json", day(3)), "not JSON").await;
    let delay = FaultAction::Delay(Duration::from_millis(1_500));
    rig.s3.store().faults().push(Fault { key_contains: Some(day(2)), ..Fault::next("PutObject", delay) });
    let (late_key, late) = pin(&day(2), json!({"expires": null}));
    let (fault, ()) = tokio::join!(rig.fails(json!({})), async {
        crate::scene::until("the tombstone is on its way", || rig.s3.store().faults().pending() == 0).await;
        rig.put(&late_key, late).await;
    });
    assert_eq!(fault.0, "retention-incomplete");
    assert!(fault.1.contains("backup 20250102-020000") && fault.1.contains("pinned by restore-1"), "{}", fault.1);
    assert_eq!(rig.dumps().len(), 5, "nothing was deleted");

    // It is waited for until it is released; the other two stay.
    let plan = rig.run(json!({})).await["plan"].clone();
    assert!(plan["warnings"].to_string().contains("20250102-020000 is expired, and its data stays"), "{plan:#}");
    let reasons: Vec<&Value> = plan["keep"].as_array().unwrap().iter().map(|kept| &kept["reasons"]).collect();
    assert_eq!(reasons[0], &json!(["pinned by restore-1 (restore)"]));
    assert!(reasons[1].to_string().contains("not readable"), "{plan:#}");
    rig.put(&late_key, pin(&day(2), json!({"released": true})).1).await;
    let receipt = rig.run(json!({})).await;
    assert_eq!(
        (ids(&receipt["plan"]["resume"]), &receipt["done"]["pins_removed"]),
        (vec!["20250102-020000"], &json!(1))
    );
    assert_eq!(rig.dumps(), ["20250101", "20250103", "20250104", "20250105"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_deleted_is_listed_and_the_rest_goes() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=6).await;
    for n in [2, 3] {
        let denied = FaultAction::Status { status: 403, code: "AccessDenied".into() };
        let fault = Fault {
            key_contains: Some(format!("dumps/2025-01-{n:02}")),
            times: u64::MAX,
            ..Fault::next("DeleteObject", denied)
        };
        rig.s3.store().faults().push(fault);
    }
    let (code, message) = rig.fails(json!({})).await;
    assert_eq!(code, "retention-incomplete");
    for id in ["20250102-020000", "20250103-020000"] {
        assert!(message.contains(&format!("backup {id}: DeleteObject on")), "{message}");
    }
    assert!(message.starts_with("2 failed, 2 expired"), "{message}");
    assert_eq!(rig.dumps(), ["20250102", "20250103", "20250105", "20250106"]);
    rig.s3.store().faults().clear();
    assert_eq!(ids(&rig.run(json!({})).await["plan"]["resume"]).len(), 2);
    assert_eq!(rig.dumps(), ["20250105", "20250106"]);
}

/// A delete marker would go over it, and hide what somebody wanted kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_object_lock_holds_is_listed_and_the_rest_goes() {
    let rig = Rig::start(&[("RETENTION_POLICY", r#"{"rules":[{"keep_last":1}]}"#)]).await;
    let locked = BucketOptions { versioning: true, object_lock: true };
    rig.s3.store().create_bucket("locked", locked).unwrap();
    rig.lambda.register(spec(&rig.s3, &[("BUCKET", "locked"), ("RETENTION_POLICY", r#"{"rules":[{"keep_last":1}]}"#)]));
    let put = async |key: String, body: String| {
        let body = ByteStream::from(body.into_bytes());
        rig.client().put_object().bucket("locked").key(key).body(body).send().await.unwrap()
    };
    for n in 1..=4 {
        put(dump_key(&day(n)), "data".to_owned()).await;
        put(manifest_key(&day(n)), manifest(&day(n)).to_string()).await;
    }
    let hold = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
    rig.client().put_object_legal_hold().bucket("locked").key(dump_key(&day(1))).legal_hold(hold).send().await.unwrap();
    let until = Timestamp::now() + SignedDuration::from_hours(24);
    let lock = ObjectLockRetention::builder()
        .mode(ObjectLockRetentionMode::Governance)
        .retain_until_date(aws_sdk_s3::primitives::DateTime::from_secs(until.as_second()))
        .build();
    rig.client().put_object_retention().bucket("locked").key(dump_key(&day(2))).retention(lock).send().await.unwrap();
    let (code, message) = rig.fails(json!({})).await;
    assert_eq!(code, "retention-incomplete");
    assert!(message.starts_with("2 failed, 1 expired"), "{message}");
    for (n, by) in [(1, "its dump is locked by a legal hold"), (2, "its dump is locked by Object Lock until")] {
        assert!(message.contains(&format!("backup {}: {by}", day(n))), "{message}");
    }
    let (_, message) = rig.fails(json!({"delete": day(1)})).await;
    assert!(message.contains("a legal hold"), "{message}");
    let objects = rig.s3.store().objects("locked").into_iter();
    let dumps = objects.filter(|object| object.is_latest && !object.delete_marker && object.key.contains("/dumps/"));
    assert_eq!(dumps.count(), 3);
    let get = rig.client().get_object().bucket("locked").key(manifest_key(&day(1))).send().await.unwrap();
    let manifest: Value = serde_json::from_slice(&get.body.collect().await.unwrap().into_bytes()).unwrap();
    assert_eq!(manifest["state"], "complete", "it is still listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_deleted_by_hand_with_the_same_guards() {
    let rig = Rig::start(&[]).await;
    days(&rig, 1..=3).await;
    let (oldest, middle, newest) = (day(1), day(2), day(3));
    rig.put(
        &format!("pins/{middle}/r.json"),
        json!({"backup_id": middle, "request_id": "r", "purpose": "hold"}).to_string(),
    )
    .await;
    let message =
        json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": json!({"delete": oldest}).to_string()}}]});
    for (request, expected) in [
        (json!({"delete": newest}), "retention-last-verified"),
        (json!({"delete": newest, "dry_run": true}), "retention-last-verified"),
        (json!({"delete": newest, "force": oldest}), "request-malformed"),
        (json!({"delete": middle, "force": middle}), "retention-pinned"),
        (json!({"delete": "20240101-000000"}), "retention-backup-unknown"),
        (json!({"delete": oldest, "bucket": "someone-elses"}), "request-unknown-fields"),
        (message, "request-not-direct"),
    ] {
        assert_eq!(rig.fails(request.clone()).await.0, expected, "{request}");
    }
    assert_eq!(rig.dumps().len(), 3);
    assert_eq!(rig.run(json!({"delete": oldest, "dry_run": true})).await["plan"]["expire"][0]["id"], json!(oldest));
    assert_eq!(rig.dumps().len(), 3);
    rig.run(json!({"delete": oldest})).await;
    assert_eq!(rig.run(json!({"delete": oldest})).await["done"]["expired"], 0, "gone already");
    rig.run(json!({"delete": newest, "force": newest})).await;
    assert_eq!(rig.dumps(), ["20250102"]);
    assert_eq!(rig.json(&manifest_key(&newest)).await["expired_artifacts"]["dump"]["expired"]["forced"], true);
    rig.no_version_was_deleted();
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_is_blocked_by_what_looks_wrong() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=4).await;
    let mut shrunk = manifest(&day(5));
    shrunk["tables"][0]["rows"] = json!(600);
    rig.backup(&shrunk).await;
    for n in 1..=3 {
        let mut unverified = manifest(&format!("202501{n:02}-030000"));
        unverified["source"]["database"] = json!("crm");
        unverified["verified"] = Value::Null;
        rig.backup(&unverified).await;
    }
    let outcome = rig.invoke(json!({})).await;
    let plan = &outcome.payload["plan"];
    assert_eq!((&outcome.payload["status"], &plan["expire"]), (&json!("blocked"), &json!([])));
    let blocks: Vec<(&str, &str)> = plan["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["database"].as_str().unwrap(), b["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(blocks, [("crm", "no_verified_backup"), ("shop", "anomaly")]);
    assert!(plan["blocks"][1]["detail"].as_str().unwrap().ends_with("rows fell from 1000 to 600"));
    let blocked = outcome.log.iter().filter(|line| line.contains("\"RetentionBlocked\":1")).count();
    assert_eq!(blocked, 2, "one metric a database: {:#?}", outcome.log);
    assert!(outcome.log.iter().any(|line| line.contains("\"BackupAnomalies\":1.0")), "{:#?}", outcome.log);
    assert_eq!(rig.fails(json!({"delete": day(1)})).await.0, "retention-anomaly");

    // The next night's backup does not make the anomaly forgotten; a person does, and once is enough.
    let mut next = shrunk;
    next["timestamp"] = json!(day(6));
    next["artifacts"]["dump"]["key"] = json!(dump_key(&day(6)));
    rig.backup(&next).await;
    assert_eq!(rig.run(json!({})).await["done"]["expired"], 0);
    assert_eq!(
        rig.run(json!({"override_anomaly": true, "dry_run": true})).await["plan"]["expire"].as_array().unwrap().len(),
        4
    );
    let overridden = rig.run(json!({"override_anomaly": true})).await;
    assert_eq!(ids(&overridden["plan"]["expire"]), [day(1), day(2), day(3), day(4)]);
    days(&rig, 7..=7).await;
    assert_eq!(ids(&rig.run(json!({})).await["plan"]["expire"]), [day(5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_does_not_understand_is_kept_and_reported() {
    let policy = r#"{"rules":[{"databases":["shopp"],"keep_last":9},{"keep_last":1}]}"#;
    let rig = Rig::start(&[("RETENTION_POLICY", policy)]).await;
    days(&rig, 1..=9).await;
    let victim = day(9);
    type Change = fn(&mut Value);
    let odd: [(usize, Change); 3] = [
        (1, |m| m["manifest_version"] = json!(2)),
        (2, |m| m["artifacts"]["dump"]["key"] = json!(dump_key(&day(9)))),
        (3, |m| m["artifacts"]["dump"]["key"] = json!("files/upload.xlsx")),
    ];
    for (n, change) in odd {
        let mut changed = manifest(&day(n));
        change(&mut changed);
        rig.put(&manifest_key(&day(n)), changed.to_string()).await;
    }
    rig.put(&manifest_key(&day(4)), &b"{\"manifest_version\":1,"[..]).await;
    rig.put("postgres-exports/metadata/20250105-020000.json", manifest(&day(5)).to_string()).await;
    rig.put("files/upload.xlsx", "somebody's").await;
    let mut held = manifest(&day(6));
    held["hold"] = json!(true);
    rig.put(&manifest_key(&day(6)), held.to_string()).await;
    let receipt = rig.run(json!({})).await;
    assert_eq!(ids(&receipt["plan"]["expire"]), [day(5), day(7), day(8)]);
    assert_eq!(rig.dumps(), ["20250101", "20250102", "20250103", "20250104", "20250106", "20250109"]);
    assert!(rig.present().contains("files/upload.xlsx") && rig.present().contains(&dump_key(&victim)));
    let warnings = receipt["plan"]["warnings"].to_string();
    for expected in [
        "20250101-020000.json is kept with all that is its: manifest version 2",
        "backup 20250102-020000 is kept: the key of its dump",
        "backup 20250103-020000 is kept: the key of its dump",
        "20250104-020000.json is kept with all that is its: it is not a manifest",
        "metadata/20250105-020000.json is kept with all that is its: it does not lie where a manifest lies",
        "names the database \\\"shopp\\\", of which there is no backup",
    ] {
        assert!(warnings.contains(expected), "{expected}: {warnings}");
    }
    assert_eq!(receipt["plan"]["counts"]["unreadable"], 3);
    assert_eq!(rig.fails(json!({"delete": day(1), "force": day(1)})).await.0, "manifest-unreadable");
    assert_eq!(rig.fails(json!({"delete": day(2), "force": day(2)})).await.0, "retention-not-understood");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_behind_expires_nothing() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=5).await;
    rig.backup(&manifest("29990101-020000")).await;
    let receipt = rig.run(json!({})).await;
    assert_eq!(
        (&receipt["done"]["expired"], &receipt["plan"]["blocks"][0]["reason"]),
        (&json!(0), &json!("clock_behind_newest"))
    );
    // By hand, the one that is misdated may go.
    rig.run(json!({"delete": "29990101-020000", "force": "29990101-020000"})).await;
    assert_eq!(rig.run(json!({})).await["done"]["expired"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_wrong_is_a_configuration_that_is_wrong() {
    let rig = Rig::start(&[("RETENTION_POLICY", r#"{"rules":[{"keep_last":-1},{"keep_newest":3}]}"#)]).await;
    days(&rig, 1..=3).await;
    let (code, message) = rig.fails(json!({})).await;
    assert_eq!(code, "configuration");
    assert!(message.contains("keep_last: -1") && message.contains("unknown field \"keep_newest\""), "{message}");
    for (policy, problem) in [
        (r#"{"rules":[]}"#, "at least one rule"),
        (r#"{"rules":[{"keep_last":0}]}"#, "keeps nothing"),
        (r#"{"rules":[{"purposes":["testing"]}]}"#, "keeps nothing"),
    ] {
        rig.lambda.register(spec(&rig.s3, &[("RETENTION_POLICY", policy)]));
        let (code, message) = rig.fails(json!({})).await;
        assert!(code == "configuration" && message.contains(problem), "{policy}: {message}");
    }
    assert_eq!(rig.dumps().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_retention_runs_do_not_meet() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=4).await;
    let delay = FaultAction::Delay(Duration::from_secs(3));
    rig.s3.store().faults().push(Fault { key_contains: Some("dumps/".into()), ..Fault::next("DeleteObject", delay) });
    let (first, ()) = tokio::join!(rig.run(json!({})), async {
        crate::scene::until("the first run deletes", || rig.s3.store().faults().pending() == 0).await;
        let scheduled = rig.run(crate::scene::scheduled("2025-02-01T03:00:00Z")).await;
        assert_eq!(scheduled["status"], "ignored");
        assert_eq!(rig.fails(json!({"delete": day(1)})).await.0, "retention-lease-held");
    });
    assert_eq!(first["done"]["expired"], 2);
}

/// A real backup outlives retention, and restores.
#[tokio::test(flavor = "multi_thread")]
async fn what_retention_keeps_restores() {
    let bed = Bed::start(16).await;
    crate::scene::small_database(&bed, "shop").await;
    bed.register_export("shop", &[]);
    for night in 0..4 {
        bed.export(crate::scene::night(night)).await;
    }
    bed.store().add_key(KEY.0, KEY.1, Some(rights()));
    bed.lambda
        .register(spec(&bed.s3, &[("ENVIRONMENT", "test"), ("RETENTION_POLICY", r#"{"rules":[{"keep_last":1}]}"#)]));
    let outcome = bed.lambda.invoke(RETENTION, json!({})).await.unwrap();
    assert!(!outcome.is_error(), "{:#}", outcome.payload);
    assert_eq!(outcome.payload["done"]["expired"], 3);
    let mut manifests = crate::scene::listed(&bed).await;
    manifests.dedup_by_key(|manifest| manifest.timestamp);
    let complete: Vec<_> = manifests.iter().filter(|m| !m.artifacts.is_empty()).collect();
    assert_eq!((manifests.len(), complete.len()), (4, 1), "tombstones are manifests that every reader reads");
    crate::scene::proved(&bed, complete[0]).await;
}

/// `HOLDFAST_MANIFESTS` says how many; the time they take is printed.
#[tokio::test(flavor = "multi_thread")]
async fn many_manifests_are_planned_from_the_bucket_alone() {
    let count: usize = std::env::var("HOLDFAST_MANIFESTS").ok().map_or(1_500, |text| text.parse().unwrap());
    let rig = Rig::start(&[]).await;
    let client = rig.client();
    let newest: Timestamp = "2025-06-01T00:00:00Z".parse().unwrap();
    let table = manifest(&day(1))["tables"][0].clone();
    let puts = (0..count).map(|n| {
        let at = newest - SignedDuration::from_mins(n as i64 * 17);
        let id = holdfast_shared::domain::BackupId::from_timestamp(at).to_string();
        let mut manifest = manifest(&id);
        // A few kilobytes, as of a small database.
        let tables = (0..24).map(|t| {
            let mut table = table.clone();
            table["name"] = json!(format!("table_{t}"));
            table
        });
        manifest["tables"] = tables.collect();
        let put =
            client.put_object().bucket(BUCKET).key(manifest_key(&id)).body(manifest.to_string().into_bytes().into());
        async move { put.send().await.unwrap() }
    });
    futures::stream::iter(puts).buffer_unordered(16).for_each(|_| async {}).await;
    rig.s3.store().clear_requests();
    let began = Instant::now();
    let outcome = rig.invoke(json!({"dry_run": true})).await;
    let elapsed = began.elapsed();
    let plan = &outcome.payload["plan"];
    assert_eq!(
        (&plan["counts"]["keep"], &plan["counts"]["expire"]),
        (&json!(30), &json!(count - 30)),
        "{:#}",
        plan["counts"]
    );
    let requests = rig.s3.store().requests().len();
    assert!(requests < count + count / 500 + 40, "{requests} requests for {count} manifests");
    let rss = outcome.max_rss_kb / 1024;
    println!(
        "{count} manifests: {elapsed:.1?}, {requests} requests, {rss} MB; {}",
        outcome.payload["durations_seconds"]
    );
}
