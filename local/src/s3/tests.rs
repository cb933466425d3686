//! The server as clients meet it: every rule over real HTTP, with the AWS SDK and the AWS CLI.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod checksums;
mod cli;
mod conditions;
mod disk;
mod faults;
mod listing;
mod locks;
mod multipart;
mod objects;
mod permissions;
mod signatures;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};

use super::{BucketOptions, S3Options, S3Server};

pub(super) const MIB: usize = 1 << 20;

/// A server in memory with the bucket `plain`, `versioned` and `locked`.
pub(super) struct Bench {
    pub(super) server: S3Server,
    pub(super) client: Client,
}

pub(super) async fn bench() -> Bench {
    bench_with(S3Options::default()).await
}

pub(super) async fn bench_with(options: S3Options) -> Bench {
    let server = S3Server::start(options).await.unwrap();
    let store = server.store();
    store.create_bucket("plain", BucketOptions::default()).unwrap();
    store.create_bucket("versioned", BucketOptions { versioning: true, object_lock: false }).unwrap();
    store.create_bucket("locked", BucketOptions { versioning: true, object_lock: true }).unwrap();
    let client = client(&server, "holdfast", "holdfast-secret");
    Bench { server, client }
}

/// A client without retries: a test sees each answer.
pub(super) fn client(server: &S3Server, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(server.endpoint())
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        .retry_config(RetryConfig::disabled())
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

/// Status and code of a refusal. A HEAD has no body, and so no code but the SDK's `NotFound`.
pub(super) fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E>>,
) -> (u16, String) {
    match result.expect_err("must be refused") {
        SdkError::ServiceError(context) => {
            let code = context.err().code().unwrap_or_default().to_owned();
            (context.raw().status().as_u16(), code)
        }
        other => panic!("no answer from the service: {other:?}"),
    }
}

pub(super) fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Bytes that differ from part to part.
pub(super) fn body(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

impl Bench {
    pub(super) async fn put(&self, bucket: &str, key: &str, content: &[u8]) -> Option<String> {
        let body = ByteStream::from(content.to_vec());
        self.client.put_object().bucket(bucket).key(key).body(body).send().await.unwrap().version_id
    }

    pub(super) async fn get(&self, bucket: &str, key: &str) -> Vec<u8> {
        let output = self.client.get_object().bucket(bucket).key(key).send().await.unwrap();
        output.body.collect().await.unwrap().to_vec()
    }

    pub(super) async fn begin(&self, key: &str) -> String {
        let create = self.client.create_multipart_upload().bucket("plain").key(key);
        let create = create.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject);
        create.send().await.unwrap().upload_id.unwrap()
    }

    pub(super) async fn part(&self, key: &str, upload: &str, number: i32, content: Vec<u8>) -> CompletedPart {
        let part = self.client.upload_part().bucket("plain").key(key).upload_id(upload).part_number(number);
        let part = part.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).body(ByteStream::from(content));
        let output = part.send().await.unwrap();
        CompletedPart::builder().part_number(number).set_e_tag(output.e_tag).build()
    }

    pub(super) fn complete(
        &self,
        key: &str,
        upload: &str,
        parts: Vec<CompletedPart>,
    ) -> aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder {
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        self.client.complete_multipart_upload().bucket("plain").key(key).upload_id(upload).multipart_upload(list)
    }

    /// The names of the operations that were called, in order.
    pub(super) fn operations(&self) -> Vec<String> {
        self.server.store().requests().into_iter().map(|request| request.operation).collect()
    }
}
