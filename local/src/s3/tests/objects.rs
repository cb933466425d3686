//! Objects: bytes, ranges, metadata, versions, copies, tags, storage classes.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketVersioningStatus, Delete, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleFilter, MetadataDirective, ObjectIdentifier, RestoreRequest, StorageClass, Tag, Tagging,
    VersioningConfiguration,
};

use super::{bench, body, refusal, refused};

#[tokio::test]
async fn bytes_and_metadata_come_back() {
    let bench = bench().await;
    let content = body(3_000_000, 1);
    let put = bench.client.put_object().bucket("plain").key("a b/ü+c.json").body(ByteStream::from(content.clone()));
    let put = put
        .content_type("application/json")
        .metadata("backup-id", "20250621-143000")
        .cache_control("no-store")
        .content_encoding("gzip");
    let etag = put.send().await.unwrap().e_tag.unwrap();

    let got = bench.client.get_object().bucket("plain").key("a b/ü+c.json").send().await.unwrap();
    assert_eq!(got.content_type(), Some("application/json"));
    assert_eq!(got.cache_control(), Some("no-store"));
    assert_eq!(got.content_encoding(), Some("gzip"));
    assert_eq!(got.metadata().unwrap()["backup-id"], "20250621-143000");
    assert_eq!(got.e_tag(), Some(etag.as_str()));
    assert_eq!(got.checksum_crc32().map(str::len), Some(8));
    assert!(got.body.collect().await.unwrap().to_vec() == content);

    let head = bench.client.head_object().bucket("plain").key("a b/ü+c.json").send().await.unwrap();
    assert_eq!(head.content_length(), Some(3_000_000));
    assert_eq!(head.version_id(), None);
    assert_eq!(head.storage_class(), None);
}

#[tokio::test]
async fn ranges_are_exact() {
    let bench = bench().await;
    let content = body(2_500_000, 2);
    bench.put("plain", "k", &content).await;
    let head = bench.client.head_object().bucket("plain").key("k").send().await.unwrap();
    assert_eq!(head.content_encoding(), None);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999999", 1000, 2_000_000),
        ("bytes=-5", 2_499_995, 2_500_000),
        ("bytes=2499999-9999999", 2_499_999, 2_500_000),
    ] {
        let got = bench.client.get_object().bucket("plain").key("k").range(range).send().await.unwrap();
        assert_eq!(got.content_range(), Some(format!("bytes {from}-{}/2500000", to - 1).as_str()));
        assert!(got.body.collect().await.unwrap().to_vec() == content[from..to], "{range}");
    }
    let beyond = bench.client.get_object().bucket("plain").key("k").range("bytes=2500000-").send().await;
    assert_eq!(refusal(beyond), refused(416, "InvalidRange"));
}

#[tokio::test]
async fn what_is_missing_is_not_found() {
    let bench = bench().await;
    let get = |bucket: &str, key: &str| bench.client.get_object().bucket(bucket).key(key).send();
    assert_eq!(refusal(get("plain", "none").await), refused(404, "NoSuchKey"));
    assert_eq!(refusal(get("nowhere", "none").await), refused(404, "NoSuchBucket"));
    let head = bench.client.head_object().bucket("plain").key("none").send().await;
    assert_eq!(refusal(head).0, 404);
    assert_eq!(refusal(bench.client.head_bucket().bucket("nowhere").send().await).0, 404);
}

#[tokio::test]
async fn a_delete_in_a_versioned_bucket_leaves_a_marker() {
    let bench = bench().await;
    let first = bench.put("versioned", "k", b"one").await.unwrap();
    let second = bench.put("versioned", "k", b"two").await.unwrap();
    assert_ne!(first, second);
    let deleted = bench.client.delete_object().bucket("versioned").key("k").send().await.unwrap();
    assert_eq!(deleted.delete_marker(), Some(true));
    let marker = deleted.version_id.unwrap();
    let get = bench.client.get_object().bucket("versioned").key("k");
    assert_eq!(refusal(get.clone().send().await), refused(404, "NoSuchKey"));
    let old = get.clone().version_id(&first).send().await.unwrap();
    assert_eq!(old.body.collect().await.unwrap().to_vec(), b"one");
    assert_eq!(refusal(get.clone().version_id(&marker).send().await), refused(405, "MethodNotAllowed"));

    bench.client.delete_object().bucket("versioned").key("k").version_id(&marker).send().await.unwrap();
    assert_eq!(bench.get("versioned", "k").await, b"two");
    bench.client.delete_object().bucket("versioned").key("k").version_id(&second).send().await.unwrap();
    assert_eq!(bench.get("versioned", "k").await, b"one");
    assert_eq!(refusal(get.version_id(&second).send().await), refused(404, "NoSuchVersion"));
}

#[tokio::test]
async fn suspended_versioning_replaces_only_the_null_version() {
    let bench = bench().await;
    bench.put("versioned", "k", b"kept").await.unwrap();
    let suspended = VersioningConfiguration::builder().status(BucketVersioningStatus::Suspended).build();
    let put = bench.client.put_bucket_versioning().bucket("versioned").versioning_configuration(suspended);
    put.send().await.unwrap();
    assert_eq!(bench.put("versioned", "k", b"null one").await.as_deref(), Some("null"));
    assert_eq!(bench.put("versioned", "k", b"null two").await.as_deref(), Some("null"));
    let sizes: Vec<u64> = bench.server.store().objects("versioned").iter().map(|object| object.size).collect();
    assert_eq!(sizes, [8, 4]);
}

#[tokio::test]
async fn many_are_deleted_at_once() {
    let bench = bench().await;
    for key in ["a", "b", "c"] {
        bench.put("plain", key, b"x").await;
    }
    let objects = ["a", "c", "never-there"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(objects.to_vec())).build().unwrap();
    let output = bench.client.delete_objects().bucket("plain").delete(delete).send().await.unwrap();
    assert_eq!(output.deleted().len(), 3);
    let left: Vec<String> = bench.server.store().objects("plain").into_iter().map(|object| object.key).collect();
    assert_eq!(left, ["b"]);
}

#[tokio::test]
async fn a_copy_has_the_bytes_and_what_the_directive_says() {
    let bench = bench().await;
    let content = body(100_000, 3);
    let put = bench.client.put_object().bucket("plain").key("from").body(ByteStream::from(content.clone()));
    put.metadata("who", "me").send().await.unwrap();
    let copy = |key: &str| bench.client.copy_object().bucket("versioned").key(key).copy_source("plain/from");
    copy("to").send().await.unwrap();
    assert!(bench.get("versioned", "to").await == content);
    let replaced = copy("other").metadata_directive(MetadataDirective::Replace).metadata("who", "you");
    replaced.storage_class(StorageClass::StandardIa).send().await.unwrap();
    let head = async |key: &str| bench.client.head_object().bucket("versioned").key(key).send().await.unwrap();
    assert_eq!(head("to").await.metadata().unwrap()["who"], "me");
    let other = head("other").await;
    assert_eq!(other.metadata().unwrap()["who"], "you");
    assert_eq!(other.storage_class(), Some(&StorageClass::StandardIa));
    let onto_itself = bench.client.copy_object().bucket("plain").key("from").copy_source("plain/from").send().await;
    assert_eq!(refusal(onto_itself), refused(400, "InvalidRequest"));
}

#[tokio::test]
async fn an_archived_object_is_read_only_after_it_has_thawed() {
    let bench = bench().await;
    bench.server.store().set_thaw_delay(Duration::from_millis(300));
    let put = bench.client.put_object().bucket("plain").key("cold").body(ByteStream::from_static(b"ice"));
    put.storage_class(StorageClass::DeepArchive).send().await.unwrap();
    let get = bench.client.get_object().bucket("plain").key("cold");
    let head = bench.client.head_object().bucket("plain").key("cold");
    assert_eq!(refusal(get.clone().send().await), refused(403, "InvalidObjectState"));
    assert_eq!(head.clone().send().await.unwrap().restore(), None);
    let copy = bench.client.copy_object().bucket("plain").key("copy").copy_source("plain/cold").send().await;
    assert_eq!(refusal(copy), refused(403, "ObjectNotInActiveTierError"));

    let days = RestoreRequest::builder().days(2).build();
    let restore = bench.client.restore_object().bucket("plain").key("cold").restore_request(days);
    restore.clone().send().await.unwrap();
    assert_eq!(head.clone().send().await.unwrap().restore(), Some("ongoing-request=\"true\""));
    assert_eq!(refusal(get.clone().send().await), refused(403, "InvalidObjectState"));
    assert_eq!(refusal(restore.clone().send().await), refused(409, "RestoreAlreadyInProgress"));

    tokio::time::sleep(Duration::from_millis(350)).await;
    let shown = head.send().await.unwrap().restore.unwrap();
    assert!(shown.starts_with("ongoing-request=\"false\", expiry-date=\""), "{shown}");
    assert_eq!(get.send().await.unwrap().body.collect().await.unwrap().to_vec(), b"ice");
    restore.send().await.unwrap();
    let statuses: Vec<u16> =
        bench.server.store().requests().iter().filter(|r| r.operation == "RestoreObject").map(|r| r.status).collect();
    assert_eq!(statuses, [202, 409, 200]);
    bench.put("plain", "warm", b"x").await;
    let days = RestoreRequest::builder().days(2).build();
    let warm = bench.client.restore_object().bucket("plain").key("warm").restore_request(days).send().await;
    assert_eq!(refusal(warm), refused(403, "InvalidObjectState"));
}

#[tokio::test]
async fn tags_are_kept() {
    let bench = bench().await;
    let put = bench.client.put_object().bucket("plain").key("k").body(ByteStream::from_static(b"x"));
    put.tagging("a=1&b=two%20words").send().await.unwrap();
    let get = bench.client.get_object_tagging().bucket("plain").key("k");
    let tags: Vec<_> = get.clone().send().await.unwrap().tag_set.into_iter().map(|t| (t.key, t.value)).collect();
    assert_eq!(tags, [("a".into(), "1".into()), ("b".into(), "two words".into())]);
    let one = Tagging::builder().tag_set(Tag::builder().key("c").value("3").build().unwrap()).build().unwrap();
    bench.client.put_object_tagging().bucket("plain").key("k").tagging(one).send().await.unwrap();
    assert_eq!(get.clone().send().await.unwrap().tag_set[0].key, "c");
    bench.client.delete_object_tagging().bucket("plain").key("k").send().await.unwrap();
    assert!(get.send().await.unwrap().tag_set.is_empty());
}

#[tokio::test]
async fn bucket_settings_are_kept() {
    let bench = bench().await;
    let client = &bench.client;
    client.create_bucket().bucket("made-here").send().await.unwrap();
    let again = client.create_bucket().bucket("made-here").send().await;
    assert_eq!(refusal(again), refused(409, "BucketAlreadyOwnedByYou"));
    let names: Vec<String> =
        client.list_buckets().send().await.unwrap().buckets.unwrap().into_iter().map(|b| b.name.unwrap()).collect();
    assert_eq!(names, ["locked", "made-here", "plain", "versioned"]);
    client.get_bucket_location().bucket("plain").send().await.unwrap();
    assert_eq!(client.get_bucket_versioning().bucket("plain").send().await.unwrap().status(), None);
    let status = client.get_bucket_versioning().bucket("versioned").send().await.unwrap().status;
    assert_eq!(status, Some(BucketVersioningStatus::Enabled));

    let get = client.get_bucket_lifecycle_configuration().bucket("plain");
    assert_eq!(refusal(get.clone().send().await), refused(404, "NoSuchLifecycleConfiguration"));
    let rule = LifecycleRule::builder()
        .id("old")
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix("tmp/").build())
        .expiration(LifecycleExpiration::builder().days(7).build())
        .build()
        .unwrap();
    let configuration = BucketLifecycleConfiguration::builder().rules(rule.clone()).build().unwrap();
    let put = client.put_bucket_lifecycle_configuration().bucket("plain").lifecycle_configuration(configuration);
    put.send().await.unwrap();
    assert_eq!(get.send().await.unwrap().rules(), [rule]);
}
