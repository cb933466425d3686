//! Least privilege: restricted key pairs, and what a caller learns who may not list.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use super::{bench, client, refusal, refused};
use crate::s3::{ACCOUNT_ID, Permissions};

fn allow(pairs: &[(&str, &str)]) -> Permissions {
    Permissions { allow: pairs.iter().map(|(action, prefix)| ((*action).to_owned(), (*prefix).to_owned())).collect() }
}

#[tokio::test]
async fn a_writer_writes_under_its_prefix_and_nothing_else() {
    let bench = bench().await;
    let exporter = allow(&[
        ("s3:PutObject", "exports/"),
        ("s3:AbortMultipartUpload", "exports/"),
        ("s3:ListMultipartUploadParts", "exports/"),
    ]);
    bench.server.store().add_key("exporter", "its-secret", Some(exporter));
    let exporter = client(&bench.server, "exporter", "its-secret");
    let put = |key: &str| exporter.put_object().bucket("plain").key(key).body(ByteStream::from_static(b"x")).send();
    put("exports/1").await.unwrap();
    assert_eq!(refusal(put("other/1").await), refused(403, "AccessDenied"));
    let denied = refused(403, "AccessDenied");
    assert_eq!(refusal(exporter.get_object().bucket("plain").key("exports/1").send().await), denied);
    assert_eq!(refusal(exporter.delete_object().bucket("plain").key("exports/1").send().await), denied);
    assert_eq!(refusal(exporter.list_objects_v2().bucket("plain").send().await), denied);
    assert_eq!(refusal(exporter.list_multipart_uploads().bucket("plain").send().await), denied);

    let upload = exporter.create_multipart_upload().bucket("plain").key("exports/2").send().await.unwrap();
    let id = upload.upload_id.unwrap();
    exporter.list_parts().bucket("plain").key("exports/2").upload_id(&id).send().await.unwrap();
    exporter.abort_multipart_upload().bucket("plain").key("exports/2").upload_id(&id).send().await.unwrap();
    let copy = exporter.copy_object().bucket("plain").key("exports/3").copy_source("plain/exports/1").send().await;
    assert_eq!(refusal(copy), denied);
}

#[tokio::test]
async fn versions_need_rights_of_their_own() {
    let bench = bench().await;
    let id = bench.put("versioned", "k", b"x").await.unwrap();
    let retention = allow(&[("s3:GetObject", ""), ("s3:DeleteObject", ""), ("s3:ListBucket", "k")]);
    bench.server.store().add_key("retention", "its-secret", Some(retention));
    let retention = client(&bench.server, "retention", "its-secret");
    let denied = refused(403, "AccessDenied");
    retention.get_object().bucket("versioned").key("k").send().await.unwrap();
    let get = retention.get_object().bucket("versioned").key("k").version_id(&id).send().await;
    assert_eq!(refusal(get), denied);
    let delete = retention.delete_object().bucket("versioned").key("k").version_id(&id).send().await;
    assert_eq!(refusal(delete), denied);
    let one = ObjectIdentifier::builder().key("k").version_id(&id).build().unwrap();
    let many = Delete::builder().objects(one).build().unwrap();
    let many = retention.delete_objects().bucket("versioned").delete(many).send().await.unwrap();
    assert_eq!(many.errors()[0].code(), Some("AccessDenied"));
    retention.delete_object().bucket("versioned").key("k").send().await.unwrap();
    retention.list_objects_v2().bucket("versioned").prefix("k").send().await.unwrap();
    let wider = retention.list_objects_v2().bucket("versioned").send().await;
    assert_eq!(refusal(wider), denied);
    bench.server.store().restrict("retention", allow(&[("s3:Get*", "")]));
    let get = retention.get_object().bucket("versioned").key("k").version_id(&id).send().await.unwrap();
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"x");
}

/// "How to perform conditional deletes": with an ETag it takes `s3:GetObject` as well.
#[tokio::test]
async fn comparing_an_etag_is_reading() {
    let bench = bench().await;
    bench.put("plain", "k", b"x").await;
    let etag = bench.client.head_object().bucket("plain").key("k").send().await.unwrap().e_tag.unwrap();
    bench.server.store().add_key(
        "sweeper",
        "its-secret",
        Some(allow(&[("s3:DeleteObject", ""), ("s3:PutObject", "")])),
    );
    let sweeper = client(&bench.server, "sweeper", "its-secret");
    let denied = refused(403, "AccessDenied");
    let delete = || sweeper.delete_object().bucket("plain").key("k");
    assert_eq!(refusal(delete().if_match(&etag).send().await), denied);
    let put = sweeper.put_object().bucket("plain").key("k").if_match(&etag).body(ByteStream::from_static(b"y"));
    assert_eq!(refusal(put.send().await), denied);
    let one = ObjectIdentifier::builder().key("k").e_tag(&etag).build().unwrap();
    let many = Delete::builder().objects(one).build().unwrap();
    let many = sweeper.delete_objects().bucket("plain").delete(many).send().await.unwrap();
    assert_eq!(many.errors()[0].code(), Some("AccessDenied"));
    delete().if_match("*").send().await.unwrap();
}

#[tokio::test]
async fn a_prefix_limits_lists_of_objects_and_allows_no_list_of_uploads() {
    let bench = bench().await;
    let lists =
        |prefix| ["s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"].map(|a| (a, prefix));
    bench.server.store().add_key("retention", "its-secret", Some(allow(&lists("k"))));
    let retention = client(&bench.server, "retention", "its-secret");
    retention.list_objects_v2().bucket("plain").prefix("k").send().await.unwrap();
    retention.list_object_versions().bucket("plain").prefix("k").send().await.unwrap();
    let uploads = retention.list_multipart_uploads().bucket("plain").prefix("k").send().await;
    assert_eq!(refusal(uploads), refused(403, "AccessDenied"));
    bench.server.store().restrict("retention", allow(&lists("")));
    retention.list_multipart_uploads().bucket("plain").prefix("k").send().await.unwrap();
}

#[tokio::test]
async fn who_may_not_list_does_not_learn_what_is_missing() {
    let bench = bench().await;
    bench.put("plain", "there", b"x").await;
    bench.server.store().set_no_list_permission(true);
    let client = &bench.client;
    client.get_object().bucket("plain").key("there").send().await.unwrap();
    let get = client.get_object().bucket("plain").key("missing").send().await;
    assert_eq!(refusal(get), refused(403, "AccessDenied"));
    assert_eq!(refusal(client.head_object().bucket("plain").key("missing").send().await).0, 403);
    assert_eq!(refusal(client.list_objects_v2().bucket("plain").send().await).0, 403);
    assert_eq!(refusal(client.list_objects().bucket("plain").send().await).0, 403);
    assert_eq!(refusal(client.list_object_versions().bucket("plain").send().await).0, 403);
    assert_eq!(refusal(client.list_multipart_uploads().bucket("plain").send().await).0, 403);
    bench.server.store().set_no_list_permission(false);
    let get = client.get_object().bucket("plain").key("missing").send().await;
    assert_eq!(refusal(get), refused(404, "NoSuchKey"));
}

#[tokio::test]
async fn another_bucket_owner_is_refused() {
    let bench = bench().await;
    let put = |owner: &str| {
        let put = bench.client.put_object().bucket("plain").key("k").body(ByteStream::from_static(b"x"));
        put.expected_bucket_owner(owner).send()
    };
    assert_eq!(refusal(put("999999999999").await), refused(403, "AccessDenied"));
    put(ACCOUNT_ID).await.unwrap();
}
