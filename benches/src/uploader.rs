//! `pipe-to-s3`: standard input as one multipart upload, as lean as the SDK allows. It stands for `aws s3 cp -`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use holdfast_local::s3::S3Options;
use tokio::task::JoinHandle;

use crate::error::BenchError;
use crate::sink::BUCKET;

const PART_BYTES: usize = 8 << 20;
const IN_FLIGHT: usize = 4;
const KEY: &str = "dump";

pub async fn upload_standard_input(endpoint: &str) -> Result<(), BenchError> {
    let client = client(endpoint);
    let created = client.create_multipart_upload().bucket(BUCKET).key(KEY).send().await.map_err(BenchError::upload)?;
    let id = created.upload_id.ok_or_else(|| BenchError::Missing { what: "the upload's id".to_owned() })?;
    let failed = "cannot read standard input";
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(BenchError::io(failed))?;
    // Read without a buffer in between.
    let input = Arc::new(File::from(input));
    let mut uploading: VecDeque<JoinHandle<Result<CompletedPart, BenchError>>> = VecDeque::new();
    let mut parts = Vec::new();
    for number in 1.. {
        let input = Arc::clone(&input);
        let body = tokio::task::spawn_blocking(move || next_part(&input)).await?.map_err(BenchError::io(failed))?;
        let last = body.len() < PART_BYTES;
        if !body.is_empty() || number == 1 {
            uploading.push_back(tokio::spawn(put_part(client.clone(), id.clone(), number, body)));
        }
        while uploading.len() > if last { 0 } else { IN_FLIGHT - 1 } {
            let Some(oldest) = uploading.pop_front() else { break };
            parts.push(oldest.await??);
        }
        if last {
            break;
        }
    }
    let listed = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    let complete = client.complete_multipart_upload().bucket(BUCKET).key(KEY).upload_id(id).multipart_upload(listed);
    complete.send().await.map_err(BenchError::upload)?;
    Ok(())
}

fn next_part(mut input: &File) -> std::io::Result<Vec<u8>> {
    let mut part = Vec::with_capacity(PART_BYTES);
    input.by_ref().take(PART_BYTES as u64).read_to_end(&mut part)?;
    Ok(part)
}

async fn put_part(client: Client, id: String, number: i32, body: Vec<u8>) -> Result<CompletedPart, BenchError> {
    let part = client.upload_part().bucket(BUCKET).key(KEY).upload_id(id).part_number(number);
    // Otherwise the SHA-256 of the body, which HTTPS spares, would be most of the work.
    let sending = part.body(ByteStream::from(body)).customize().disable_payload_signing().send();
    let etag = sending.await.map_err(BenchError::upload)?.e_tag;
    Ok(CompletedPart::builder().part_number(number).set_e_tag(etag).build())
}

fn client(endpoint: &str) -> Client {
    let server = S3Options::default();
    let credentials = Credentials::new(server.access_key, server.secret_key, None, None, "benchmark");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .endpoint_url(endpoint)
        .region(Region::new(server.region))
        .credentials_provider(credentials)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}
