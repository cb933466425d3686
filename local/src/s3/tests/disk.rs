//! With a data directory the buckets outlive the server.

use std::path::Path;

use aws_sdk_s3::types::{ObjectLockLegalHold, ObjectLockLegalHoldStatus};

use super::{MIB, bench_with, body, refusal, refused};
use crate::s3::{ObjectSummary, S3Options};

fn content_files(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("content")).unwrap().count()
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = || S3Options { data_dir: Some(directory.path().to_owned()), ..S3Options::default() };
    let bench = bench_with(options()).await;
    bench.put("plain", "gone", b"gone").await;
    bench.put("plain", "small", b"old").await;
    bench.put("plain", "small", b"new").await;
    bench.client.delete_object().bucket("plain").key("gone").send().await.unwrap();
    bench.put("versioned", "k", b"one").await;
    bench.put("versioned", "k", b"two").await;
    bench.client.delete_object().bucket("versioned").key("k").send().await.unwrap();
    let held = bench.put("locked", "held", b"x").await.unwrap();
    let on = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
    bench.client.put_object_legal_hold().bucket("locked").key("held").legal_hold(on).send().await.unwrap();
    let upload = bench.begin("big").await;
    let (one, two) = (body(5 * MIB, 1), body(1000, 2));
    let parts =
        vec![bench.part("big", &upload, 1, one.clone()).await, bench.part("big", &upload, 2, two.clone()).await];
    bench.complete("big", &upload, parts).send().await.unwrap();
    let pending = bench.begin("pending").await;
    bench.part("pending", &pending, 1, body(1000, 3)).await;
    let copy = bench.client.copy_object().bucket("plain").key("copy").copy_source("plain/small");
    copy.send().await.unwrap();

    let list = |bench: &super::Bench| -> Vec<ObjectSummary> {
        ["plain", "versioned", "locked"].iter().flat_map(|bucket| bench.server.store().objects(bucket)).collect()
    };
    let before = list(&bench);
    // gone and old went with their objects; the copy shares its file with its source.
    assert_eq!(content_files(directory.path()), 7);
    bench.server.stop().await;
    drop(bench.client);

    let bench = bench_with(options()).await;
    assert_eq!(list(&bench), before);
    assert!(bench.get("plain", "big").await == [one, two].concat());
    assert_eq!(bench.get("plain", "copy").await, b"new");
    let delete = bench.client.delete_object().bucket("locked").key("held").version_id(&held).send().await;
    assert_eq!(refusal(delete), refused(403, "AccessDenied"));
    assert!(bench.server.store().pending_uploads("plain").is_empty());
    assert_eq!(content_files(directory.path()), 6);
    bench.client.delete_object().bucket("plain").key("small").send().await.unwrap();
    assert_eq!(bench.get("plain", "copy").await, b"new");
    bench.client.delete_object().bucket("plain").key("copy").send().await.unwrap();
    assert_eq!(content_files(directory.path()), 5);
}
