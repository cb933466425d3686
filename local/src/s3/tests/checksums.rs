//! Checksums: of bodies, of parts, of whole objects, and the mixtures that S3 refuses.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedPart};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{MIB, bench, body, refusal, refused};

fn crc64(content: &[u8]) -> String {
    BASE64.encode(crc_fast::crc64_nvme(content).to_be_bytes())
}

fn crc32(content: &[u8]) -> String {
    BASE64.encode(crc_fast::crc32_iso_hdlc(content).to_be_bytes())
}

#[tokio::test]
async fn a_wrong_checksum_of_a_body_is_refused() {
    let bench = bench().await;
    let put = || bench.client.put_object().bucket("plain").key("k").body(ByteStream::from_static(b"hello"));
    let zeros = |size: usize| BASE64.encode(vec![0; size]);
    for wrong in [
        put().checksum_crc32(zeros(4)),
        put().checksum_crc32_c(zeros(4)),
        put().checksum_crc64_nvme(zeros(8)),
        put().checksum_sha1(zeros(20)),
        put().checksum_sha256(zeros(32)),
        put().content_md5(zeros(16)),
    ] {
        assert_eq!(refusal(wrong.send().await), refused(400, "BadDigest"));
    }
    assert_eq!(refusal(put().content_md5("short").send().await), refused(400, "InvalidDigest"));
    assert_eq!(refusal(put().checksum_crc32("AAA=").send().await), refused(400, "InvalidRequest"));
    let two = put().checksum_crc32(crc32(b"hello")).checksum_crc64_nvme(crc64(b"hello"));
    assert_eq!(refusal(two.send().await), refused(400, "InvalidRequest"));
    assert!(bench.server.store().objects("plain").is_empty());

    put().checksum_crc32(crc32(b"hello")).send().await.unwrap();
    put().checksum_sha1("qvTGHdzF6KLavt4PO0gs2a6pQ00=").send().await.unwrap();
    put().checksum_sha256("LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=").send().await.unwrap();
    put().content_md5("XUFAKrxLKna5cZ2REBfFkg==").send().await.unwrap();
}

#[tokio::test]
async fn a_wrong_checksum_of_a_part_is_refused() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let part = || {
        let part = bench.client.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(1);
        part.body(ByteStream::from_static(b"hello"))
    };
    let wrong = part().checksum_crc64_nvme(crc64(b"hellO")).send().await;
    assert_eq!(refusal(wrong), refused(400, "BadDigest"));
    assert_eq!(bench.server.store().pending_uploads("plain")[0].parts, 0);
    let right = part().checksum_crc64_nvme(crc64(b"hello")).send().await.unwrap();
    assert_eq!(right.checksum_crc64_nvme(), Some(crc64(b"hello").as_str()));
}

#[tokio::test]
async fn a_part_carries_the_checksum_that_its_upload_has() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let part = |upload: &str| {
        let part = bench.client.upload_part().bucket("plain").key("k").upload_id(upload).part_number(1);
        part.body(ByteStream::from_static(b"x"))
    };
    // The SDK's default is CRC32.
    assert_eq!(refusal(part(&upload).send().await), refused(400, "InvalidRequest"));
    let plain = bench.client.create_multipart_upload().bucket("plain").key("k").send().await.unwrap();
    let plain = plain.upload_id.unwrap();
    assert_eq!(refusal(part(&plain).send().await), refused(400, "InvalidRequest"));
    let unfit = bench.client.create_multipart_upload().bucket("plain").key("k");
    let unfit = unfit.checksum_algorithm(ChecksumAlgorithm::Sha256).checksum_type(ChecksumType::FullObject);
    assert_eq!(refusal(unfit.send().await), refused(400, "InvalidRequest"));
}

#[tokio::test]
async fn the_checksum_of_the_whole_is_combined_from_the_parts() {
    let bench = bench().await;
    for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32C, ChecksumAlgorithm::Crc64Nvme] {
        let create = bench.client.create_multipart_upload().bucket("plain").key("k");
        let create = create.checksum_algorithm(algorithm.clone()).checksum_type(ChecksumType::FullObject);
        let upload = create.send().await.unwrap().upload_id.unwrap();
        let (one, two) = (body(5 * MIB, 1), body(12_345, 2));
        let mut parts = Vec::new();
        for (number, content) in [(1, &one), (2, &two)] {
            let part = bench.client.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(number);
            let part = part.checksum_algorithm(algorithm.clone()).body(ByteStream::from(content.clone()));
            let tag = part.send().await.unwrap().e_tag;
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(tag).build());
        }
        let whole = [one, two].concat();
        let complete = |content: &[u8]| {
            let complete = bench.complete("k", &upload, parts.clone()).checksum_type(ChecksumType::FullObject);
            match &algorithm {
                ChecksumAlgorithm::Crc32 => complete.checksum_crc32(crc32(content)),
                ChecksumAlgorithm::Crc32C => {
                    complete.checksum_crc32_c(BASE64.encode(crc_fast::crc32_iscsi(content).to_be_bytes()))
                }
                _ => complete.checksum_crc64_nvme(crc64(content)),
            }
        };
        assert_eq!(refusal(complete(&whole[1..]).send().await), refused(400, "BadDigest"), "{algorithm}");
        complete(&whole).send().await.unwrap();
        assert!(bench.get("plain", "k").await == whole);
    }
}

#[tokio::test]
async fn a_composite_checksum_needs_every_part_in_the_list() {
    let bench = bench().await;
    let create = bench.client.create_multipart_upload().bucket("plain").key("k");
    let create = create.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await.unwrap();
    assert_eq!(create.checksum_type(), Some(&ChecksumType::Composite));
    let upload = create.upload_id.unwrap();
    let part = bench.client.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(1);
    let part = part.checksum_algorithm(ChecksumAlgorithm::Sha256).body(ByteStream::from_static(b"hello"));
    let part = part.send().await.unwrap();
    let listed = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag);
    let bare = bench.complete("k", &upload, vec![listed.clone().build()]).send().await;
    assert_eq!(refusal(bare), refused(400, "InvalidRequest"));
    let wrong = listed.clone().checksum_sha256(BASE64.encode([0; 32])).build();
    assert_eq!(refusal(bench.complete("k", &upload, vec![wrong]).send().await), refused(400, "InvalidPart"));
    let full = listed.set_checksum_sha256(part.checksum_sha256).build();
    let done = bench.complete("k", &upload, vec![full]).send().await.unwrap();
    assert!(done.checksum_sha256().unwrap().ends_with("-1"));
}

#[tokio::test]
async fn without_an_algorithm_the_object_gets_crc64nvme() {
    let bench = bench().await;
    let create = bench.client.create_multipart_upload().bucket("plain").key("k").send().await.unwrap();
    let upload = create.upload_id.unwrap();
    let config = bench.client.config().to_builder();
    let when_required = aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired;
    let quiet = aws_sdk_s3::Client::from_conf(config.request_checksum_calculation(when_required).build());
    let part = quiet.upload_part().bucket("plain").key("k").upload_id(&upload).part_number(1);
    let tag = part.body(ByteStream::from_static(b"hello")).send().await.unwrap().e_tag;
    let parts = vec![CompletedPart::builder().part_number(1).set_e_tag(tag).build()];
    let done = bench.complete("k", &upload, parts).send().await.unwrap();
    assert_eq!(done.checksum_crc64_nvme(), Some(crc64(b"hello").as_str()));
}
