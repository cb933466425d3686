//! Multipart uploads: the limits, the order, what a completion checks, and what stays after a refusal.

use aws_sdk_s3::config::RequestChecksumCalculation::{WhenRequired, WhenSupported};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, CompletedPart};

use futures::{FutureExt, StreamExt};

use super::{MIB, bench, bench_with, body, refusal, refused};
use crate::s3::S3Options;

#[tokio::test]
async fn parts_in_any_order_with_gaps_make_one_object() {
    let bench = bench().await;
    let upload = bench.begin("big").await;
    let (first, second, third) = (body(5 * MIB, 1), body(5 * MIB + 7, 2), body(100, 3));
    let last = bench.part("big", &upload, 10_000, third.clone()).await;
    let head = bench.part("big", &upload, 1, first.clone()).await;
    let middle = bench.part("big", &upload, 40, second.clone()).await;
    let whole = [first, second, third].concat();
    let size = i64::try_from(whole.len()).unwrap();
    let pending = bench.server.store().pending_uploads("plain");
    assert_eq!((pending[0].parts, pending[0].bytes), (3, whole.len() as u64));

    let done = bench.complete("big", &upload, vec![head, middle, last]).mpu_object_size(size).send().await.unwrap();
    assert!(done.e_tag().unwrap().ends_with("-3\""));
    assert_eq!(done.checksum_type().unwrap().as_str(), "FULL_OBJECT");
    let got =
        bench.client.get_object().bucket("plain").key("big").checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(got.checksum_crc64_nvme(), done.checksum_crc64_nvme());
    // Reading to the end makes the SDK verify the combined checksum.
    assert!(got.body.collect().await.unwrap().to_vec() == whole);
    let range = format!("bytes={}-{}", 5 * MIB - 3, 10 * MIB + 20);
    let got = bench.client.get_object().bucket("plain").key("big").range(range).send().await.unwrap();
    assert!(got.body.collect().await.unwrap().to_vec() == whole[5 * MIB - 3..=10 * MIB + 20]);
    let got = bench.client.get_object().bucket("plain").key("big").part_number(2).send().await.unwrap();
    assert_eq!((got.parts_count(), got.content_length()), (Some(3), Some(5 * MIB as i64 + 7)));

    let again =
        bench.complete("big", &upload, vec![CompletedPart::builder().part_number(1).e_tag("x").build()]).send().await;
    assert_eq!(refusal(again), refused(404, "NoSuchUpload"));
    assert!(bench.server.store().pending_uploads("plain").is_empty());
}

#[tokio::test]
async fn small_parts_may_only_come_last() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let small = bench.part("k", &upload, 3, body(5 * MIB - 1, 1)).await;
    let last = bench.part("k", &upload, 900, body(10, 2)).await;
    let refusal_of_both = refusal(bench.complete("k", &upload, vec![small.clone(), last]).send().await);
    assert_eq!(refusal_of_both, refused(400, "EntityTooSmall"));
    bench.complete("k", &upload, vec![small]).send().await.unwrap();
}

#[tokio::test]
async fn the_list_of_parts_is_checked() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let one = bench.part("k", &upload, 1, body(5 * MIB, 1)).await;
    let two = bench.part("k", &upload, 2, body(10, 2)).await;
    let complete = |parts| bench.complete("k", &upload, parts).send();
    assert_eq!(refusal(complete(vec![two.clone(), one.clone()]).await), refused(400, "InvalidPartOrder"));
    assert_eq!(refusal(complete(vec![one.clone(), one.clone()]).await), refused(400, "InvalidPartOrder"));
    let unknown = CompletedPart::builder().part_number(3).e_tag(one.e_tag().unwrap()).build();
    assert_eq!(refusal(complete(vec![one.clone(), unknown]).await), refused(400, "InvalidPart"));
    let wrong_tag = CompletedPart::builder().part_number(2).e_tag(one.e_tag().unwrap()).build();
    assert_eq!(refusal(complete(vec![one.clone(), wrong_tag]).await), refused(400, "InvalidPart"));
    assert_eq!(refusal(complete(vec![]).await), refused(400, "MalformedXML"));
    let short = bench.complete("k", &upload, vec![one.clone(), two.clone()]).mpu_object_size(7).send().await;
    assert_eq!(refusal(short), refused(400, "InvalidRequest"));
    // After all these refusals the upload is as it was.
    complete(vec![one, two]).await.unwrap();
}

#[tokio::test]
async fn part_numbers_have_bounds() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    for number in [0, 10_001] {
        let part = bench.client.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(number);
        let part = part.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).body(vec![1].into()).send().await;
        assert_eq!(refusal(part), refused(400, "InvalidArgument"), "{number}");
    }
}

#[tokio::test]
async fn a_failed_precondition_leaves_the_upload() {
    let bench = bench().await;
    bench.put("plain", "k", b"first").await;
    let upload = bench.begin("k").await;
    let part = bench.part("k", &upload, 1, b"second".to_vec()).await;
    let lost = bench.complete("k", &upload, vec![part.clone()]).if_none_match("*").send().await;
    assert_eq!(refusal(lost), refused(412, "PreconditionFailed"));
    assert_eq!(bench.get("plain", "k").await, b"first");
    bench.complete("k", &upload, vec![part]).send().await.unwrap();
    assert_eq!(bench.get("plain", "k").await, b"second");
}

#[tokio::test]
async fn an_aborted_upload_is_gone() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let part = bench.part("k", &upload, 1, b"x".to_vec()).await;
    let abort = || bench.client.abort_multipart_upload().bucket("plain").key("k").upload_id(&upload).send();
    abort().await.unwrap();
    assert_eq!(refusal(abort().await), refused(404, "NoSuchUpload"));
    assert_eq!(refusal(bench.complete("k", &upload, vec![part]).send().await), refused(404, "NoSuchUpload"));
    let late = bench.client.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(2);
    let late = late.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).body(vec![1].into()).send().await;
    assert_eq!(refusal(late), refused(404, "NoSuchUpload"));
}

#[tokio::test]
async fn a_part_sent_twice_counts_as_sent_last() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let old = bench.part("k", &upload, 1, b"old".to_vec()).await;
    let new = bench.part("k", &upload, 1, b"new".to_vec()).await;
    assert_eq!(refusal(bench.complete("k", &upload, vec![old]).send().await), refused(400, "InvalidPart"));
    bench.complete("k", &upload, vec![new]).send().await.unwrap();
    assert_eq!(bench.get("plain", "k").await, b"new");
}

#[tokio::test]
async fn parts_and_uploads_are_listed_in_pages() {
    let bench = bench().await;
    let upload = bench.begin("a/k").await;
    for number in [1, 5, 9] {
        bench.part("a/k", &upload, number, body(10, 1)).await;
    }
    let list = bench.client.list_parts().bucket("plain").key("a/k").upload_id(&upload).max_parts(2);
    let page = list.clone().send().await.unwrap();
    assert_eq!(page.parts().iter().filter_map(aws_sdk_s3::types::Part::part_number).collect::<Vec<_>>(), [1, 5]);
    assert_eq!(page.is_truncated(), Some(true));
    let page = list.part_number_marker(page.next_part_number_marker().unwrap()).send().await.unwrap();
    assert_eq!(page.parts()[0].part_number(), Some(9));
    assert!(page.parts()[0].checksum_crc64_nvme().is_some());
    assert_eq!(page.is_truncated(), Some(false));

    let other = bench.begin("b").await;
    let list = bench.client.list_multipart_uploads().bucket("plain").max_uploads(1);
    let page = list.clone().send().await.unwrap();
    assert_eq!(page.uploads()[0].upload_id(), Some(upload.as_str()));
    let next = list.key_marker(page.next_key_marker().unwrap()).upload_id_marker(page.next_upload_id_marker().unwrap());
    assert_eq!(next.send().await.unwrap().uploads()[0].upload_id(), Some(other.as_str()));
    let within = bench.client.list_multipart_uploads().bucket("plain").prefix("a/").send().await.unwrap();
    assert_eq!(within.uploads().len(), 1);
}

#[tokio::test]
async fn parts_are_copied_from_ranges() {
    let bench = bench().await;
    let content = body(6 * MIB, 9);
    bench.put("versioned", "from", &content).await;
    let upload = bench.begin("k").await;
    let copy = |number: i32, range: String| {
        let copy = bench.client.upload_part_copy().bucket("plain").key("k").upload_id(&upload);
        copy.part_number(number).copy_source("versioned/from").copy_source_range(range).send()
    };
    let tag = copy(1, format!("bytes=100-{}", 100 + 5 * MIB - 1)).await.unwrap().copy_part_result.unwrap().e_tag;
    let one = CompletedPart::builder().part_number(1).set_e_tag(tag).build();
    let two = bench.part("k", &upload, 2, b"end".to_vec()).await;
    let beyond = copy(3, format!("bytes=0-{}", 6 * MIB)).await;
    assert_eq!(refusal(beyond), refused(400, "InvalidArgument"));
    bench.complete("k", &upload, vec![one, two]).send().await.unwrap();
    assert!(bench.get("plain", "k").await == [&content[100..100 + 5 * MIB], b"end"].concat());
}

#[tokio::test]
async fn a_sink_keeps_only_the_head() {
    let bench = bench_with(S3Options { discard_parts: true, ..S3Options::default() }).await;
    let upload = bench.begin("big").await;
    let head = body(5 * MIB, 1);
    let two = bench.part("big", &upload, 2, body(1000, 2)).await;
    let one = bench.part("big", &upload, 1, head.clone()).await;
    bench.complete("big", &upload, vec![one, two]).send().await.unwrap();
    let get = |range: &str| bench.client.get_object().bucket("plain").key("big").range(range).send();
    let got = get("bytes=5-1004").await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().to_vec(), head[5..1005]);
    let beyond = get("bytes=5242880-5242890").await;
    assert_eq!(refusal(beyond), refused(500, "InternalError"));
    let size = bench.client.head_object().bucket("plain").key("big").send().await.unwrap().content_length();
    assert_eq!(size, Some(5 * MIB as i64 + 1000));
}

/// A measurement, not a test: `cargo test --release -p local s3::tests::multipart::throughput -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures speed"]
async fn throughput() {
    for (label, discard_parts, trailers) in [
        ("discarded, unsigned payload", true, false),
        ("discarded, CRC64NVME trailers", true, true),
        ("kept, unsigned payload", false, false),
        ("kept, CRC64NVME trailers", false, true),
    ] {
        let bench = bench_with(S3Options { discard_parts, ..S3Options::default() }).await;
        let when = if trailers { WhenSupported } else { WhenRequired };
        let config = bench.client.config().to_builder().request_checksum_calculation(when).build();
        let client = aws_sdk_s3::Client::from_conf(config);
        let algorithm = trailers.then_some(ChecksumAlgorithm::Crc64Nvme);
        let create = client.create_multipart_upload().bucket("plain").key("k");
        let upload = create.set_checksum_algorithm(algorithm.clone()).send().await.unwrap().upload_id.unwrap();
        let content = bytes::Bytes::from(body(16 * MIB, 1));
        let started = std::time::Instant::now();
        let parts = (1..=64).map(|number| {
            let part = client.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(number);
            let part = part.set_checksum_algorithm(algorithm.clone()).body(content.clone().into()).customize();
            if trailers { part.send().boxed() } else { part.disable_payload_signing().send().boxed() }
        });
        let sent: Vec<_> = futures::stream::iter(parts).buffer_unordered(4).collect().await;
        assert!(sent.iter().all(Result::is_ok));
        println!("{label}: {:.0} MiB/s", 64.0 * 16.0 / started.elapsed().as_secs_f64());
    }
}
