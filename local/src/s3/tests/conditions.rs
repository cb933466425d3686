//! Preconditions of writes and reads, also when many writers meet.

use aws_sdk_s3::primitives::ByteStream;

use super::{bench, refusal, refused};

#[tokio::test]
async fn one_of_many_writers_wins() {
    let bench = bench().await;
    let writers = (0..24u8).map(|writer| {
        let put = bench.client.put_object().bucket("plain").key("lease").if_none_match("*");
        put.body(ByteStream::from(vec![writer; 70_000])).send()
    });
    let results = futures::future::join_all(writers).await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().enumerate().partition(|(_, result)| result.is_ok());
    assert_eq!(won.len(), 1);
    for (_, result) in lost {
        assert_eq!(refusal(result), refused(412, "PreconditionFailed"));
    }
    assert_eq!(bench.get("plain", "lease").await, vec![won[0].0 as u8; 70_000]);
}

#[tokio::test]
async fn one_of_many_completions_wins() {
    let bench = bench().await;
    let mut uploads = Vec::new();
    for writer in 0..6u8 {
        let upload = bench.begin("lease").await;
        let part = bench.part("lease", &upload, 1, vec![writer; 100]).await;
        uploads.push((upload, part));
    }
    let all = uploads.into_iter().map(|(id, part)| bench.complete("lease", &id, vec![part]).if_none_match("*").send());
    let won = futures::future::join_all(all).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
    // The losers can still be completed elsewhere or aborted.
    assert_eq!(bench.server.store().pending_uploads("plain").len(), 5);
}

#[tokio::test]
async fn a_delete_marker_counts_as_absent() {
    let bench = bench().await;
    bench.put("versioned", "k", b"1").await;
    let put = || bench.client.put_object().bucket("versioned").key("k").body(ByteStream::from_static(b"2"));
    assert_eq!(refusal(put().if_none_match("*").send().await), refused(412, "PreconditionFailed"));
    bench.client.delete_object().bucket("versioned").key("k").send().await.unwrap();
    put().if_none_match("*").send().await.unwrap();
}

#[tokio::test]
async fn if_match_guards_put_complete_and_delete() {
    let bench = bench().await;
    let put = || bench.client.put_object().bucket("plain").key("k").body(ByteStream::from_static(b"1"));
    assert_eq!(refusal(put().if_match("\"x\"").send().await), refused(404, "NoSuchKey"));
    let etag = put().send().await.unwrap().e_tag.unwrap();
    assert_eq!(refusal(put().if_match("\"x\"").send().await), refused(412, "PreconditionFailed"));
    put().if_match(&etag).send().await.unwrap();

    let upload = bench.begin("k").await;
    let part = bench.part("k", &upload, 1, b"two".to_vec()).await;
    let complete = |etag: &str| bench.complete("k", &upload, vec![part.clone()]).if_match(etag).send();
    assert_eq!(refusal(complete("\"x\"").await), refused(412, "PreconditionFailed"));
    let etag = complete(&etag).await.unwrap().e_tag.unwrap();

    let delete = |etag: &str| bench.client.delete_object().bucket("plain").key("k").if_match(etag).send();
    assert_eq!(refusal(delete("\"x\"").await), refused(412, "PreconditionFailed"));
    delete(&etag).await.unwrap();
    assert_eq!(refusal(delete(&etag).await), refused(404, "NoSuchKey"));
}

#[tokio::test]
async fn reads_are_conditional() {
    let bench = bench().await;
    bench.put("plain", "k", b"1").await;
    let get = || bench.client.get_object().bucket("plain").key("k");
    let head = get().send().await.unwrap();
    let (etag, modified) = (head.e_tag.unwrap(), head.last_modified.unwrap());
    assert_eq!(refusal(get().if_none_match(&etag).send().await).0, 304);
    assert_eq!(refusal(get().if_match("\"x\"").send().await), refused(412, "PreconditionFailed"));
    assert_eq!(refusal(get().if_modified_since(modified).send().await).0, 304);
    get().if_match(&etag).if_unmodified_since(modified).send().await.unwrap();
}
