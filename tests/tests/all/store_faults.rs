//! A store that fails at any call, refuses, or lies: success or a clear error, never a listed backup that does not restore.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use holdfast_local::s3::{Fault, FaultAction, Permissions};
use serde_json::{Value, json};

use crate::bed::{BUCKET, Bed};
use crate::scene::{
    MAJOR, SEVERAL_PARTS, all_proved, larger_database, listed, night, proved, scheduled, small_database,
};

fn status(status: u16, code: &str) -> FaultAction {
    FaultAction::Status { status, code: code.to_owned() }
}

async fn several_parts_bed() -> Bed {
    let bed = Bed::start(MAJOR).await;
    larger_database(&bed, "shop").await;
    bed.register_export("shop", &SEVERAL_PARTS);
    bed
}

/// How often a good run makes each call.
async fn calls(bed: &Bed, event: Value) -> BTreeMap<String, u64> {
    bed.store().clear_requests();
    bed.export(event).await;
    let mut calls = BTreeMap::new();
    bed.store().requests().into_iter().for_each(|request| *calls.entry(request.operation).or_default() += 1);
    calls
}

/// Strikes each of the first calls of each operation once: a run that tries again succeeds.
async fn each_call_once(action: FaultAction) {
    const OPERATIONS: [&str; 6] =
        ["PutObject", "GetObject", "HeadObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"];
    let bed = several_parts_bed().await;
    bed.export(night(0)).await;
    let mut calls = calls(&bed, night(1)).await;
    let expected = proved(&bed, &listed(&bed).await[0]).await;
    let mut nights = 1;
    for operation in OPERATIONS {
        let count = calls.remove(operation).unwrap_or_else(|| panic!("an export makes no {operation}"));
        for nth in 1..=count.min(3) {
            nights += 1;
            bed.store().faults().push(Fault::nth(operation, nth, action.clone()));
            let outcome = bed.invoke(night(nights)).await;
            let moment = format!("{action:?} at {operation} {nth}");
            assert_eq!(bed.store().faults().pending(), 0, "{moment} was not met");
            bed.store().faults().clear();
            assert!(!outcome.is_error(), "{moment}: {:#}", outcome.payload);
            assert_eq!(outcome.payload["duplicate"], false, "{moment}");
            assert_eq!(bed.manifests().len(), nights + 1, "{moment}");
            let loud = outcome.log.iter().find(|line| line.contains("\"ERROR\"") || line.contains("\"WARN\""));
            assert_eq!(loud, None, "{moment}");
        }
    }
    assert_eq!(calls, BTreeMap::new(), "operations that no fault struck");
    // An upload whose beginning was not answered is not known to anyone, and empty.
    assert!(bed.store().pending_uploads(BUCKET).iter().all(|upload| upload.parts == 0));
    assert_eq!(all_proved(&bed, &expected).await, nights + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failure_at_any_call_is_survived() {
    join_all([
        each_call_once(status(503, "SlowDown")),
        each_call_once(status(500, "InternalError")),
        each_call_once(FaultAction::ResetBefore),
        each_call_once(FaultAction::ResetAfter),
    ])
    .await;
}

/// Strikes for as long as the run tries: it fails clearly, lists nothing, and a later run succeeds.
async fn each_operation_for_good(bed: &Bed, action: &FaultAction, codes: &[(&'static str, &str)], first_night: usize) {
    for (index, (operation, code)) in codes.iter().enumerate() {
        let (night, moment) = (night(first_night + index), format!("{action:?} at every {operation}"));
        let before = bed.manifests().len();
        bed.store().faults().always(operation, action.clone());
        let outcome = bed.invoke(night.clone()).await;
        bed.store().faults().clear();
        assert_eq!(outcome.payload["errorType"], *code, "{moment}: {:#}", outcome.payload);
        assert_eq!(bed.manifests().len(), before, "{moment}");
        assert_eq!(bed.store().pending_uploads(BUCKET), [], "{moment}");
        let receipt = bed.export(night).await;
        assert_eq!(receipt["duplicate"], false, "{moment}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_is_named() {
    let bed = several_parts_bed().await;
    let expected = proved(&bed, &bed.manifest(&bed.export(night(0)).await).await).await;
    let expired = status(400, "ExpiredToken");
    let codes = ["PutObject", "GetObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]
        .map(|operation| (operation, "store-credentials-rejected"));
    each_operation_for_good(&bed, &expired, &codes, 1).await;
    let codes = ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]
        .map(|operation| (operation, "store-access-denied"));
    each_operation_for_good(&bed, &status(403, "AccessDenied"), &codes, 10).await;
    each_operation_for_good(&bed, &status(301, "PermanentRedirect"), &[("UploadPart", "store-wrong-region")], 20).await;
    let conflict = status(409, "ConditionalRequestConflict");
    each_operation_for_good(&bed, &conflict, &[("CompleteMultipartUpload", "store-conflict")], 21).await;
    assert_eq!(all_proved(&bed, &expected).await, 12);

    // Mid-upload, with the cleanup refused as well: the next run sweeps.
    bed.store().faults().push(Fault { times: 9, ..Fault::nth("UploadPart", 2, expired.clone()) });
    bed.store().faults().always("AbortMultipartUpload", expired);
    assert_eq!(bed.export_fails(night(30)).await.0, "store-credentials-rejected");
    bed.store().faults().clear();
    assert_eq!(bed.store().pending_uploads(BUCKET).len(), 1);
    bed.export(night(31)).await;
    assert_eq!(bed.store().pending_uploads(BUCKET), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_keeps_failing_is_unavailable_or_unreachable() {
    let lane = |action: FaultAction, operation: &'static str, code: &'static str| async move {
        let bed = several_parts_bed().await;
        bed.export(night(0)).await;
        each_operation_for_good(&bed, &action, &[(operation, code)], 1).await;
    };
    tokio::join!(
        lane(status(503, "SlowDown"), "UploadPart", "store-unavailable"),
        lane(status(500, "InternalError"), "HeadObject", "store-unavailable"),
        lane(FaultAction::ErrorIn200 { code: "InternalError".into() }, "CompleteMultipartUpload", "store-unavailable"),
        lane(FaultAction::ResetBefore, "CreateMultipartUpload", "store-unreachable"),
        lane(FaultAction::Hang(Duration::from_millis(200)), "UploadPart", "store-unreachable"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_fails_or_is_not_answered_is_made_sure_of() {
    let bed = several_parts_bed().await;
    let expected = proved(&bed, &bed.manifest(&bed.export(night(0)).await).await).await;
    let conflict = Fault { times: 2, ..Fault::next("PutObject", status(409, "ConditionalRequestConflict")) };
    let faults = [
        Fault::next("CompleteMultipartUpload", FaultAction::ErrorIn200 { code: "InternalError".into() }),
        Fault::next("CompleteMultipartUpload", FaultAction::ResetAfter),
        Fault { times: 5, ..Fault::next("CompleteMultipartUpload", FaultAction::ResetAfter) },
        Fault { key_contains: Some("/metadata/".to_owned()), ..Fault::next("PutObject", FaultAction::ResetAfter) },
        Fault { key_contains: Some("/metadata/".to_owned()), ..conflict.clone() },
        conflict,
        // The head and the first block are read back; a body that breaks off is read again.
        Fault { key_contains: Some("/dumps/".to_owned()), ..Fault::next("GetObject", FaultAction::Truncate) },
    ];
    let count = faults.len();
    for (index, fault) in faults.into_iter().enumerate() {
        let moment = format!("{fault:?}");
        bed.store().faults().push(fault);
        let outcome = bed.invoke(night(1 + index)).await;
        bed.store().faults().clear();
        assert!(!outcome.is_error(), "{moment}: {:#}", outcome.payload);
    }
    assert_eq!(all_proved(&bed, &expected).await, 1 + count);
    assert_eq!(bed.store().pending_uploads(BUCKET), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_reads_back_differently_is_not_listed() {
    let bed = several_parts_bed().await;
    // Each block's beginning, and the head: a bit flipped anywhere in what is read back is seen.
    for nth in 1..=4 {
        let corrupt = Fault {
            key_contains: Some("/dumps/".to_owned()),
            ..Fault::nth("GetObject", nth, FaultAction::CorruptBody)
        };
        bed.store().faults().push(corrupt);
        let (code, message) = bed.export_fails(night(0)).await;
        assert_eq!(bed.store().faults().pending(), 0, "an export reads back less than {nth} times");
        bed.store().faults().clear();
        assert_eq!(code, "read-back-differs", "{message}");
        assert!(message.contains("20250101-020000.dump"), "{message}");
        assert_eq!(bed.manifests(), Vec::<String>::new());
    }
    // A store that has put something else there.
    let overwrite = async {
        crate::scene::struck(&bed).await;
        crate::scene::put(&bed, "postgres-exports/dumps/2025-01-01/20250101-020000.dump", "not it".to_owned()).await;
    };
    bed.store().faults().push(Fault {
        key_contains: Some("/dumps/".to_owned()),
        ..Fault::nth("HeadObject", 2, FaultAction::Delay(Duration::from_millis(1_500)))
    });
    let (outcome, ()) = tokio::join!(bed.invoke(night(0)), overwrite);
    assert_eq!(outcome.payload["errorType"], "read-back-differs", "{:#}", outcome.payload);
    assert_eq!(bed.manifests(), Vec::<String>::new());
    bed.store().faults().clear();

    let receipt = bed.export(night(0)).await;
    assert_eq!((&receipt["id"], &receipt["duplicate"]), (&json!("20250101-020000"), &json!(false)));
    proved(&bed, &bed.manifest(&receipt).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_rights_that_do_not_do_are_named_and_nothing_else_is_tried() {
    let bed = Bed::start(MAJOR).await;
    small_database(&bed, "shop").await;
    let mut n = 0;
    let mut fails = async |settings: &[(&str, &str)]| {
        bed.register_export("shop", settings);
        n += 1;
        bed.export_fails(night(n)).await
    };
    let (code, message) = fails(&[("BUCKET", "no-such-bucket")]).await;
    assert_eq!(code, "store-no-bucket", "{message}");
    assert!(message.contains("no-such-bucket") && message.contains("BUCKET"), "{message}");

    let (code, _) = fails(&[("AWS_ACCESS_KEY_ID", "nobody")]).await;
    assert_eq!(code, "store-credentials-rejected");
    let (code, _) = fails(&[("AWS_SECRET_ACCESS_KEY", "wrong")]).await;
    assert_eq!(code, "store-credentials-rejected");

    let allow = |actions: &[&str], prefix: &str| {
        actions.iter().map(|action| (format!("s3:{action}"), prefix.to_owned())).collect::<Vec<_>>()
    };
    let runs = allow(&["PutObject", "GetObject"], "runs/");
    for (name, rights) in [
        ("reader", allow(&["GetObject", "GetObjectVersion"], "")),
        ("no-dumps", runs.clone()),
        ("no-read", [runs, allow(&["PutObject", "AbortMultipartUpload"], "postgres-exports/")].concat()),
    ] {
        bed.store().add_key(name, "secret", Some(Permissions { allow: rights }));
        let (code, message) = fails(&[("AWS_ACCESS_KEY_ID", name), ("AWS_SECRET_ACCESS_KEY", "secret")]).await;
        assert_eq!(code, "store-access-denied", "{name}: {message}");
        assert_eq!(bed.store().pending_uploads(BUCKET), [], "{name}");
    }

    // Nothing listens there. AWS is not tried instead: it would know no such key.
    let (code, message) = fails(&[("S3_ENDPOINT_URL", "http://127.0.0.1:1")]).await;
    assert_eq!(code, "store-unreachable", "{message}");

    let wrong = [
        ("BUCKET", ""),
        ("S3_ENDPOINT_URL", "minio:9000"),
        ("WORKERS", "many"),
        ("S3_CHECKSUM", "md5"),
        ("ENVIRONMENT", "a/b"),
    ];
    let (code, message) = fails(&wrong).await;
    assert_eq!(code, "configuration");
    for (name, _) in wrong {
        assert!(message.contains(name), "{name}: {message}");
    }
    assert_eq!(bed.manifests(), Vec::<String>::new());
    bed.register_export("shop", &[]);
    bed.export(scheduled("2025-12-01T02:00:00Z")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_know_other_checksums_or_none_and_storage_classes() {
    let bed = several_parts_bed().await;
    let labels = [("crc64nvme", Some("crc64nvme:")), ("crc32", Some("crc32:")), ("none", None)];
    for (n, (checksum, label)) in labels.into_iter().enumerate() {
        let settings = [&SEVERAL_PARTS[..], &[("S3_CHECKSUM", checksum), ("S3_STORAGE_CLASS", "STANDARD_IA")]].concat();
        bed.register_export("shop", &settings);
        // A lost answer is told from a refusal whatever is known of the object.
        bed.store().faults().push(Fault::next("CompleteMultipartUpload", FaultAction::ResetAfter));
        bed.store().faults().push(Fault::nth("PutObject", 3, FaultAction::ResetAfter));
        let receipt = bed.export(night(n)).await;
        assert_eq!(bed.store().faults().pending(), 0);
        let manifest = bed.manifest(&receipt).await;
        let stored = manifest.artifacts["dump"].checksum.clone();
        assert_eq!(stored.as_deref().map(|stored| &stored[..=stored.find(':').unwrap()]), label);
        proved(&bed, &manifest).await;
    }
    for object in bed.store().objects(BUCKET) {
        let class = if object.key.contains("/dumps/") { "STANDARD_IA" } else { "STANDARD" };
        assert_eq!(object.storage_class, class, "{}", object.key);
    }
}
