//! Object Lock: what retention and legal holds forbid, and what the bypass allows.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    DefaultRetention, Delete, ObjectIdentifier, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockLegalHold,
    ObjectLockLegalHoldStatus, ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode, ObjectLockRule,
};

use super::{Bench, bench, refusal, refused};

fn in_seconds(seconds: u64) -> DateTime {
    DateTime::from(SystemTime::now() + Duration::from_secs(seconds))
}

async fn put_locked(bench: &Bench, key: &str, mode: ObjectLockMode, seconds: u64) -> String {
    let put = bench.client.put_object().bucket("locked").key(key).body(ByteStream::from_static(b"x"));
    let put = put.object_lock_mode(mode).object_lock_retain_until_date(in_seconds(seconds));
    put.send().await.unwrap().version_id.unwrap()
}

#[tokio::test]
async fn governance_yields_to_the_bypass_and_compliance_to_nothing() {
    let bench = bench().await;
    let governed = put_locked(&bench, "k", ObjectLockMode::Governance, 600).await;
    let complied = put_locked(&bench, "k", ObjectLockMode::Compliance, 600).await;
    let delete = |id: &str| bench.client.delete_object().bucket("locked").key("k").version_id(id);
    assert_eq!(refusal(delete(&governed).send().await), refused(403, "AccessDenied"));
    delete(&governed).bypass_governance_retention(true).send().await.unwrap();
    let bypassed = delete(&complied).bypass_governance_retention(true).send().await;
    assert_eq!(refusal(bypassed), refused(403, "AccessDenied"));
    let one = ObjectIdentifier::builder().key("k").version_id(&complied).build().unwrap();
    let many = Delete::builder().objects(one).build().unwrap();
    let many = bench.client.delete_objects().bucket("locked").delete(many).send().await.unwrap();
    assert_eq!(many.errors()[0].code(), Some("AccessDenied"));
    // A delete without a version only puts a marker over it.
    bench.client.delete_object().bucket("locked").key("k").send().await.unwrap();
    assert_eq!(bench.server.store().objects("locked").len(), 2);
}

#[tokio::test]
async fn a_lock_that_has_run_out_forbids_nothing() {
    let bench = bench().await;
    let id = put_locked(&bench, "k", ObjectLockMode::Compliance, 2).await;
    let delete = || bench.client.delete_object().bucket("locked").key("k").version_id(&id).send();
    assert_eq!(refusal(delete().await), refused(403, "AccessDenied"));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    delete().await.unwrap();
}

#[tokio::test]
async fn a_legal_hold_is_set_and_lifted() {
    let bench = bench().await;
    let id = bench.put("locked", "k", b"x").await.unwrap();
    let hold = async |status| {
        let hold = ObjectLockLegalHold::builder().status(status).build();
        bench.client.put_object_legal_hold().bucket("locked").key("k").legal_hold(hold).send().await.unwrap();
    };
    let delete = || bench.client.delete_object().bucket("locked").key("k").version_id(&id);
    hold(ObjectLockLegalHoldStatus::On).await;
    let shown = bench.client.get_object_legal_hold().bucket("locked").key("k").send().await.unwrap();
    assert_eq!(shown.legal_hold().unwrap().status(), Some(&ObjectLockLegalHoldStatus::On));
    let refused_with_bypass = delete().bypass_governance_retention(true).send().await;
    assert_eq!(refusal(refused_with_bypass), refused(403, "AccessDenied"));
    hold(ObjectLockLegalHoldStatus::Off).await;
    delete().send().await.unwrap();
}

#[tokio::test]
async fn retention_is_lengthened_freely_and_shortened_with_the_bypass() {
    let bench = bench().await;
    put_locked(&bench, "k", ObjectLockMode::Governance, 600).await;
    let put = |seconds| {
        let wanted = ObjectLockRetention::builder().mode(ObjectLockRetentionMode::Governance);
        let wanted = wanted.retain_until_date(in_seconds(seconds)).build();
        bench.client.put_object_retention().bucket("locked").key("k").retention(wanted)
    };
    assert_eq!(refusal(put(60).send().await), refused(403, "AccessDenied"));
    put(1200).send().await.unwrap();
    put(60).bypass_governance_retention(true).send().await.unwrap();
    let shown = bench.client.get_object_retention().bucket("locked").key("k").send().await.unwrap().retention.unwrap();
    assert!(shown.retain_until_date().unwrap().secs() < in_seconds(61).secs() + 1);
}

#[tokio::test]
async fn the_bucket_s_default_applies_to_new_objects() {
    let bench = bench().await;
    let retention = DefaultRetention::builder().mode(ObjectLockRetentionMode::Governance).days(3).build();
    let rule = ObjectLockRule::builder().default_retention(retention).build();
    let lock = ObjectLockConfiguration::builder().object_lock_enabled(ObjectLockEnabled::Enabled).rule(rule).build();
    let put = |bucket: &str| {
        bench.client.put_object_lock_configuration().bucket(bucket).object_lock_configuration(lock.clone()).send()
    };
    put("locked").await.unwrap();
    assert_eq!(refusal(put("plain").await), refused(409, "InvalidBucketState"));
    let shown = bench.client.get_object_lock_configuration().bucket("locked").send().await.unwrap();
    assert_eq!(shown.object_lock_configuration(), Some(&lock));
    let id = bench.put("locked", "k", b"x").await.unwrap();
    let head = bench.client.head_object().bucket("locked").key("k").send().await.unwrap();
    assert_eq!(head.object_lock_mode(), Some(&ObjectLockMode::Governance));
    let delete = bench.client.delete_object().bucket("locked").key("k").version_id(&id).send().await;
    assert_eq!(refusal(delete), refused(403, "AccessDenied"));
    // A locked write must carry a digest of its body.
    let config = bench.client.config().to_builder();
    let when_required = aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired;
    let bare = aws_sdk_s3::Client::from_conf(config.request_checksum_calculation(when_required).build());
    let bare = bare.put_object().bucket("locked").key("k").body(ByteStream::from_static(b"x"));
    // The SDK knows that rule for requests with lock headers only; here the lock is the bucket's.
    assert_eq!(refusal(bare.send().await), refused(400, "InvalidRequest"));
}

#[tokio::test]
async fn a_bucket_without_lock_refuses_locked_writes() {
    let bench = bench().await;
    let put = bench.client.put_object().bucket("versioned").key("k").body(ByteStream::from_static(b"x"));
    let put = put.object_lock_mode(ObjectLockMode::Governance).object_lock_retain_until_date(in_seconds(60));
    assert_eq!(refusal(put.send().await), refused(400, "InvalidRequest"));
}
