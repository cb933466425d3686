//! What a hasty run would take for a backup, or for nobody's: what is listed and gone, a manifest put aside, a dump under a hold.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ObjectLockLegalHold, ObjectLockLegalHoldStatus};
use holdfast_local::s3::{BucketOptions, Fault, FaultAction};
use serde_json::{Value, json};

use crate::bed::BUCKET;
use crate::retention_rig::{LAST_TWO, Rig, day, days, dump_key, ids, manifest, manifest_key, spec};

const THREE_DAYS: Duration = Duration::from_secs(72 * 3600);

#[tokio::test(flavor = "multi_thread")]
async fn the_last_verified_backup_is_one_whose_dump_is_there() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=5).await;
    for n in [4, 5] {
        rig.client().delete_object().bucket(BUCKET).key(dump_key(&day(n))).send().await.unwrap();
    }
    rig.put(&dump_key(&day(3)), "cut").await;
    rig.s3.store().age_objects(THREE_DAYS);
    let receipt = rig.run(json!({})).await;
    assert_eq!(ids(&receipt["plan"]["expire"]), [day(1), day(3)]);
    assert_eq!(rig.dumps(), ["20250102"], "the only whole one");
    let told = "3 backups are listed whose data is not in the bucket as it was written: 20250105-020000";
    assert!(receipt["plan"]["warnings"].to_string().contains(told), "{:#}", receipt["plan"]["warnings"]);
    assert_eq!(rig.fails(json!({"delete": day(2)})).await.0, "retention-last-verified");

    // A newer one that is there takes its place.
    days(&rig, 6..=6).await;
    assert_eq!(ids(&rig.run(json!({})).await["plan"]["expire"]), [day(2), day(4)]);
    assert_eq!(rig.dumps(), ["20250106"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manifest_put_aside_is_about_is_no_orphan() {
    let rig = Rig::start(&[]).await;
    days(&rig, 1..=2).await;
    for n in 3..=5 {
        rig.put(&dump_key(&day(n)), "data").await;
    }
    let aside = |name: &str| format!("postgres-exports/metadata/{name}");
    rig.put(&aside(&format!("{}.json", day(3))), manifest(&day(3)).to_string()).await;
    rig.put(&aside(&format!("2025-01-04/{}.json.bak", day(4))), manifest(&day(4)).to_string()).await;
    rig.s3.store().age_objects(THREE_DAYS);
    rig.run(json!({})).await;
    rig.a_day_passes().await;
    let second = rig.run(json!({})).await;
    assert_eq!(second["done"]["orphans_removed"], 1, "{second:#}");
    assert_eq!(rig.dumps(), ["20250101", "20250102", "20250103", "20250104"]);
    assert_eq!(rig.fails(json!({"delete": day(3), "force": day(3)})).await.0, "manifest-unreadable");
}

/// The tombstone was written, the run died, and somebody put a hold on the dump: a delete marker would hide it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_comes_after_the_tombstone_is_respected() {
    let rig = Rig::start(&[]).await;
    let locked = BucketOptions { versioning: true, object_lock: true };
    rig.s3.store().create_bucket("locked", locked).unwrap();
    rig.lambda.register(spec(&rig.s3, &[("BUCKET", "locked")]));
    let put = async |key: String, body: String| {
        let body = ByteStream::from(body.into_bytes());
        rig.client().put_object().bucket("locked").key(key).body(body).send().await.unwrap()
    };
    let hold = async |status: ObjectLockLegalHoldStatus| {
        let hold = ObjectLockLegalHold::builder().status(status).build();
        let request = rig.client().put_object_legal_hold().bucket("locked").key(dump_key(&day(1)));
        request.legal_hold(hold).send().await.unwrap();
    };
    for n in 1..=2 {
        put(dump_key(&day(n)), "data".to_owned()).await;
        put(manifest_key(&day(n)), manifest(&day(n)).to_string()).await;
    }
    let mut tombstone: Value = manifest(&day(1));
    let mut dump = tombstone["artifacts"]["dump"].clone();
    dump["expired"] = json!({"at": "2025-01-20T02:00:00Z", "reason": "old", "by": "r", "forced": false});
    (tombstone["state"], tombstone["artifacts"]) = (json!("expired"), json!({}));
    tombstone["expired_artifacts"] = json!({"dump": dump});
    put(manifest_key(&day(1)), tombstone.to_string()).await;
    hold(ObjectLockLegalHoldStatus::On).await;
    let (code, message) = rig.fails(json!({})).await;
    assert_eq!(code, "retention-incomplete");
    assert!(message.contains(&format!("backup {}: its dump is locked by a legal hold", day(1))), "{message}");
    let hidden = || rig.s3.store().objects("locked").iter().filter(|object| object.delete_marker).count();
    assert_eq!(hidden(), 0);
    hold(ObjectLockLegalHoldStatus::Off).await;
    assert_eq!(ids(&rig.run(json!({})).await["plan"]["resume"]), [day(1)]);
    assert_eq!(hidden(), 1);
}

/// As Cloudflare R2 answers.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_store_knows_no_locks_backups_expire_all_the_same() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=4).await;
    let answer = |status, code: &str| FaultAction::Status { status, code: code.to_owned() };
    rig.s3.store().faults().always("GetObjectLegalHold", answer(501, "NotImplemented"));
    rig.s3.store().faults().always("GetObjectRetention", answer(405, "MethodNotAllowed"));
    assert_eq!(rig.run(json!({})).await["done"]["expired"], 2);
    assert_eq!(rig.dumps(), ["20250103", "20250104"]);
}

/// Backups that nobody may look at are kept, and that is no success.
#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_may_not_be_read_fail_the_run_and_not_its_work() {
    let rig = Rig::start(&[("RETENTION_POLICY", LAST_TWO)]).await;
    days(&rig, 1..=6).await;
    for (n, status, code) in [(1, 403, "AccessDenied"), (6, 400, "KMS.DisabledException")] {
        rig.s3.store().faults().push(Fault {
            key_contains: Some(manifest_key(&day(n))),
            times: u64::MAX,
            ..Fault::next("GetObject", FaultAction::Status { status, code: code.to_owned() })
        });
    }
    let dry = rig.run(json!({"dry_run": true})).await;
    assert_eq!(
        (ids(&dry["plan"]["expire"]), &dry["plan"]["counts"]["unreadable"]),
        (vec![day(2).as_str(), &day(3)], &json!(2))
    );
    let outcome = rig.invoke(json!({})).await;
    assert!(outcome.is_error());
    assert_eq!(outcome.payload["errorType"], "retention-incomplete");
    let message = outcome.payload["errorMessage"].as_str().unwrap();
    for expected in
        ["2 manifests may not be read", &manifest_key(&day(1)), &manifest_key(&day(6)), "KMS.DisabledException"]
    {
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let log = outcome.log.join("\n");
    assert!(
        log.contains("\"RetentionUnreadableManifests\":2.0") && log.contains("\"RetentionSucceeded\":0.0"),
        "{log}"
    );
    assert_eq!(rig.dumps(), ["20250101", "20250104", "20250105", "20250106"]);
    rig.s3.store().faults().clear();
    assert_eq!(rig.run(json!({})).await["done"]["expired"], 2);
}
